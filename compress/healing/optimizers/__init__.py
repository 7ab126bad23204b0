"""Optimizers: gradient and state to a step; an entry a file."""
