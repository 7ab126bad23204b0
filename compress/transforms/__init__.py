"""Transforms: edits of a block that keep its function, made before its weights are solved.

Here: `awq`, `smoothquant`, and the folding of scales into what comes before (`fold`). Not here: edits that change the function
(`prune`). Add one: a dataclass with `needs` and `scales`, one line in the registry.
"""
