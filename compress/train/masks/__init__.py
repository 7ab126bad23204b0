"""Masks that move while a model is trained; an entry a file."""
