"""Tiny random models of every causal language model class in transformers, each through every kind of recipe.

`python -m benchmarks.zoo` runs them and prints the table of `docs/models.md`.
"""
