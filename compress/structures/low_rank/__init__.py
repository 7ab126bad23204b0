"""Low-rank structures: two factors, alone or beside what another structure holds.

Here: `factors`, `sums`. Not here: how they are found (`solvers`, `linalg.weighted_svd`). Add one: a file, a line in the
registry.
"""
