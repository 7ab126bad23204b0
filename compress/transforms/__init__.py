"""Transforms: edits that keep the model's function, made before its weights are solved.

Here: `rotation` of the whole model, whose source is then seen in other bases (`tracing`, `orthogonal`, `rotated_source`,
`learn`); of single blocks `awq` and `smoothquant`, and the folding of scales into what comes before (`fold`). Not here: edits
that change the function (`prune`). Add one for blocks: a dataclass with `needs` and `scales`, one line in the registry.
"""
