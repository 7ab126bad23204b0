"""Sizes of a model, from its configuration and its headers."""

from __future__ import annotations

from compress.models.skeleton import Skeleton
from compress.models.views import WeightView


def numel(view: WeightView) -> int:
    """Elements of a weight."""
    return view.shape[0] * view.shape[1]


def hidden_size(skeleton: Skeleton) -> int:
    """Numbers of a token between two blocks."""
    return setting(skeleton, "hidden_size") or skeleton.model.get_input_embeddings().weight.shape[-1]


def vocabulary_size(skeleton: Skeleton) -> int:
    """Tokens that there are."""
    return setting(skeleton, "vocab_size") or skeleton.model.get_input_embeddings().weight.shape[0]


def parameters_of(skeleton: Skeleton, block: str) -> int:
    """Elements of a block."""
    return sum(parameter.numel() for parameter in skeleton.model.get_submodule(block).parameters())


def outside_of(skeleton: Skeleton) -> int:
    """Elements outside of the blocks; tied weights are counted once."""
    own = (one for name, one in skeleton.model.named_parameters() if name not in skeleton.tied)
    inside = sum(parameters_of(skeleton, name) for name in skeleton.blocks)
    return sum(parameter.numel() for parameter in own) - inside


def setting(skeleton: Skeleton, name: str) -> int | None:
    """A size in the configuration; the largest where blocks have sizes of their own, ``None`` where it has none."""
    value = getattr(skeleton.model.config.get_text_config(), name, None)
    if isinstance(value, list | tuple):
        value = max(value, default=None)
    return value if isinstance(value, int) and value > 0 else None
