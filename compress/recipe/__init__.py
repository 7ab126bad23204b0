"""What a recipe may say, and the registry of methods.

Here: the YAML schema (`sections`), loading and settings (`recipe`), names of methods (`registry`). Not here: what a
method does. Add a key: a field in `sections`; add a method: a line in `registry`.
"""
