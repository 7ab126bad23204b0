"""Seeded mutations of everything that a person can hand to the command line, and what may come of them.

Here: the files that are mutated (`world`), the mutations (`checkpoints`, `outputs`, `requests`), garbage (`values`), one
case from seed to verdict (`cases`). Add a mutation: a function in one of the three, in its list.
"""
