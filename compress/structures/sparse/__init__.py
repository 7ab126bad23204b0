"""Sparse structures: patterns of zeros, alone or over a grid.

Here: `patterns` (which elements stay), `masked` (values under a mask), `masked_grid` (codes under a mask). Add a
pattern: a class in `patterns` with its bytes in `compress_kernels.layouts.sparse`.
"""
