"""Proof that a written checkpoint is what it says.

Here: checks of files, tensors and outputs against the source (`checkpoint`, `files`, `outputs`). Not here: measures of
quality (`evaluation`). Add a check: a function that raises `UserError`, called from `checkpoint.verify`.
"""
