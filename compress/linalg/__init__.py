"""Linear algebra that several methods share.

Here: factorisations, conjugate gradients, ADMM, two-sided rounding, weighted SVD. Not here: anything that knows a
recipe or a model. Add one: a module of pure functions with a float64 test.
"""
