"""Quantization grids: the values that an element may take.

Here: `integer` (evenly spaced), `nf4` (sixteen fixed values). Not here: masks (`sparse`), factors (`low_rank`). Add a
grid: one file with `fit`, `project` and `encode`, one line in `compress.recipe.registry`.
"""
