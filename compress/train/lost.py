"""LOST from the beginning: a model whose linear layers are low rank plus a few whole columns (arXiv:2508.02668)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel

from compress.models.lost_linear import LostLinear, describe_lost


def rank_within(shape: tuple[int, int], ratio: float, columns: int) -> int:
    """The rank with which factors and ``columns`` of a weight ``[out, in]`` take ``ratio`` of its parameters, at least 1."""
    out, inputs = shape
    return max(1, int((ratio * out * inputs - columns * out) / (out + inputs) + 1e-9))


def with_lost_linears(
    model: nn.Module,
    *,
    ratio: float,
    columns: float = 0.05,
    wanted: Callable[[str], bool] = lambda name: "lm_head" not in name,
    gamma: float = 0.5,
    activation: bool = True,
) -> nn.Module:
    """Put :class:`LostLinear` in the place of every ``nn.Linear`` whose name is ``wanted``; the same ``model``, changed.

    ``save_pretrained`` then writes a checkpoint for :func:`compress.load` and, after ``import compress``, ``from_pretrained``.

    Args:
        model: freshly initialised.
        ratio: the share of a weight's parameters that its layer takes, columns included.
        columns: the share of the inputs that are kept whole; 0 is plain low rank.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is a share of the parameters above 0 and up to 1, not {ratio}")
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or not wanted(name):
            continue
        shape = (module.out_features, module.in_features)
        count = int(columns * module.in_features)
        layer = LostLinear.of(
            module.weight,
            module.bias,
            rank=rank_within(shape, ratio, count),
            columns=count,
            gamma=gamma if count else 1.0,
            activation=activation,
        )
        model.set_submodule(name, layer)
    if isinstance(model, PreTrainedModel):
        describe_lost(model)
    return model
