"""Healing: a compressed checkpoint is trained against the dense model without a change of its layout and its bytes.

Here: what may be trained (`trainables`), losses, penalties, optimizers, schedules, ends, samplers, the loop over them, and the
stage that reads and writes checkpoints. Not here: solvers of single weights or blocks (`solvers`), sparse training from the
start (`train`). A new entry is a file in its folder and a line in :mod:`compress.recipe.registry`.
"""
