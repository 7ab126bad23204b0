"""Low-rank structures: two factors, alone or in a sum with kept columns or a residual.

Here: `factors`, `sums`. Not here: how they are found (`solvers`, `linalg.weighted_svd`). Add one: a file, a line in the
registry.
"""
