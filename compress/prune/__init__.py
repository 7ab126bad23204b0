"""Pruning of shape: whole blocks (depth), neurons and head groups (width), experts, left out or merged.

Here: what is chosen, and the refit of what reads it. Not here: masks inside a weight (`structures.sparse`). Add a unit:
in `units`.
"""
