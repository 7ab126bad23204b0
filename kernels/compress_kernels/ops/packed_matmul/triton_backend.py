"""The Triton backend: the codes in a GPU's words (:mod:`compress_kernels.ops.words`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...layouts import PackedInteger
from ...layouts.bits import pack, unpack
from ..words.launch import INTEGER, PLAIN, WordOperands, gather, run
from ..words.order import from_planes, to_planes
from .operands import operands

__all__ = ["gather", "prepare", "repacked", "restore", "run"]


def prepare(layout: PackedInteger, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> WordOperands:
    """Check the tensors and bring the codes into words; scales are the tensor on disk."""
    o = operands(layout, tensors, shape)
    planes = to_planes(unpack(o.codes, o.bits, o.columns).to(torch.uint8), o.bits)
    return WordOperands(
        planes, o.scale, None, o.zero, None, o.bits, INTEGER, PLAIN, 1, o.group or o.columns, o.columns
    )


def repacked(o: WordOperands) -> tuple[str, ...]:
    """The codes need not be kept beside the words."""
    return ("weight_packed",)


def restore(layout: PackedInteger, o: WordOperands, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The codes on disk from the words that took their place."""
    return {"weight_packed": pack(from_planes(o.planes, o.bits, shape[1]), o.bits)}
