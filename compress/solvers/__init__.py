"""Solvers: how the nearest weight of a structure is found.

Here: one file for each method; `base` is the contract. Not here: what two of them share (`linalg`). Add one: a
dataclass with `solve`, one line in `compress.recipe.registry`; the contract test runs over it at once.
"""
