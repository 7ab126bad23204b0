"""Packed layouts and the operators that read them. Needs torch alone."""
