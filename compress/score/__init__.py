"""Scores: how much an error in each place of a weight costs.

Here: `metric` (the cost itself), `statistics` (what it is made from), one file for each score and saliency. Add a
score: a dataclass with `needs` and `metric(statistics)`, one line in `compress.recipe.registry`.
"""
