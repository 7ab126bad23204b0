"""Solvers: how the nearest weight of a structure is found."""
