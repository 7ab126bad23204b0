"""Fewer ranks: low-rank weights of a loaded model, cut behind their first ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from compress_kernels.layouts import Dense, Layout, LowRank, Shape, SumOf
from compress_kernels.layouts.base import part
from compress_kernels.modules import PackedLinear
from torch import Tensor, nn

from compress.errors import UserError


def cut_ranks(model: nn.Module, share: float) -> int:
    """Keep of every low-rank weight, and of every low-rank part of one, the first ranks alone.

    It is for models whose ranks are in order: those healed with trainable ``nested``, and those of a singular value
    decomposition. Factors on a grid are numbers afterwards. The model is changed in place.

    Args:
        model: as :func:`compress.load` gives it.
        share: of the ranks, above 0 and up to 1; one at least is kept.

    Returns:
        How many weights were cut.

    Raises:
        UserError: a share out of range, or a model without low-rank weights.
    """
    if not 0 < share <= 1:
        raise UserError(f"a share of the ranks is above 0 and up to 1, not {share}")
    cut = 0
    for name, module in list(model.named_modules()):
        if not isinstance(module, PackedLinear) or not _is_low_rank(module.layout):
            continue
        tensors = module.tensors()
        layout, kept = _cut(module.layout, tensors, module.shape, share)
        stored = {suffix: tensors[suffix] for suffix in module.own_suffixes if suffix not in module.suffixes}
        model.set_submodule(
            name,
            PackedLinear(
                layout,
                module.shape,
                kept | stored,
                module.bias,
                backend=module.backend,
                activations=module.activations,
            ),
        )
        cut += 1
    if not cut:
        raise UserError(
            "no weight of this model is low rank or has a low-rank part: there are no ranks to cut"
        )
    return cut


def _is_low_rank(layout: Layout) -> bool:
    return isinstance(layout, LowRank) or (isinstance(layout, SumOf) and any(map(_is_low_rank, layout.parts)))


def _cut(
    layout: Layout, tensors: Mapping[str, Tensor], shape: Shape, share: float
) -> tuple[Layout, dict[str, Tensor]]:
    """The layout of fewer ranks, and its tensors."""
    if isinstance(layout, SumOf):
        pairs = [
            _cut(one, part(f"part{place}_", tensors), shape, share) for place, one in enumerate(layout.parts)
        ]
        whole = SumOf(tuple(one for one, _ in pairs))
        return whole, whole.encode(tuple(found for _, found in pairs))
    if not isinstance(layout, LowRank):
        return layout, dict(tensors)
    dtype = layout.left.dtype if isinstance(layout.left, Dense) else torch.bfloat16
    left, right = layout.factors(tensors, shape, dtype)
    rank = max(1, round(share * layout.rank))
    stored = Dense(dtype)
    fewer = LowRank(rank, stored, stored)
    return fewer, fewer.encode(stored.encode(left[:, :rank]), stored.encode(right[:rank]))
