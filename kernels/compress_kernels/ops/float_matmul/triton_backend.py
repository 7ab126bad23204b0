"""The Triton backend: the codes in a GPU's words (:mod:`compress_kernels.ops.words`), scales as they are on disk."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...layouts import PackedFloat, check
from ...layouts.floats import BLOCK
from ..autograd import is_plain
from ..words.launch import E2M1, E4M3, E4M3_OR_NAN, E8M0, NESTED, PLAIN, WordOperands, gather, run
from ..words.order import from_planes, to_planes

__all__ = ["gather", "prepare", "repacked", "restore", "run"]


def prepare(layout: PackedFloat, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> WordOperands:
    """Check the tensors and bring the codes into words."""
    check(layout, tensors, shape)
    bits = layout.kind.bits
    codes = tensors["weight"].view(torch.uint8) if bits == 8 else layout.stored_codes(tensors).to(torch.uint8)
    scale = tensors["weight_scale"].reshape(layout.scale_grid(shape)).contiguous()
    form = {"e8m0": E8M0, "e4m3": NESTED, None: PLAIN}[layout.kind.scale]
    return WordOperands(
        planes=to_planes(codes, bits),
        scale=scale.view(torch.uint8) if form == NESTED else scale,
        outer=tensors["weight_global_scale"].float() if form == NESTED else None,
        zero=None,
        offset=None,
        bits=bits,
        kind=_kind(codes) if bits == 8 else E2M1,
        scale_kind=form,
        rows_per_scale=BLOCK if layout.group_size == "block" else 1,
        group=shape[1] // scale.shape[1],
        columns=shape[1],
    )


def _kind(codes: Tensor) -> int:
    """Which E4M3 the octets are; without values the one that takes all."""
    if codes.device.type == "meta" or not is_plain(codes):
        return E4M3_OR_NAN
    return E4M3_OR_NAN if bool(((codes & 127) == 127).any()) else E4M3


def repacked(o: WordOperands) -> tuple[str, ...]:
    """The codes need not be kept beside the words."""
    return ("weight",) if o.bits == 8 else ("weight_packed",)


def restore(layout: PackedFloat, o: WordOperands, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The codes on disk from the words that took their place."""
    codes = from_planes(o.planes, o.bits, shape[1])
    if o.bits == 8:
        return {"weight": codes.view(torch.float8_e4m3fn)}
    return {"weight_packed": codes[:, ::2] | (codes[:, 1::2] << 4)}
