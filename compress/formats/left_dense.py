"""The names of what a checkpoint leaves dense, for loaders that quantize every linear layer they are not told of."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Facts, Planned


def left_dense(weights: Sequence[Planned], facts: Facts) -> list[str]:
    """Every linear module and every other matrix ``NAME.weight`` that stays dense, under the model's name and the checkpoint's.

    A server takes what is not listed for compressed: routers, and layers for tokens ahead that transformers does not use.
    """
    compressed = {name for weight in weights for name in (weight.view.name, weight.view.module)}
    replaced = {source for weight in weights for source in weight.view.sources}
    embeddings = {source for view in facts.views if view.kind == "embedding" for source in view.sources}
    views = [view.name for view in facts.views if view.kind in ("linear", "head", "expert")]
    matrices = [
        name.removesuffix(".weight")
        for name, info in facts.headers.items()
        if name.endswith(".weight")
        and len(info.shape) == 2
        and name not in replaced
        and name not in embeddings
    ]
    names = dict.fromkeys([*facts.linear_modules, *views, *matrices])
    return [name for name in names if name not in compressed]
