"""The Triton backend: the codes in a GPU's words (:mod:`compress_kernels.ops.words`), a group's bias as its offset."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...layouts import AffineInteger
from ...layouts.bits import pack, unpack
from ..words.launch import INTEGER, PLAIN, WordOperands, gather, run
from ..words.order import from_planes, to_planes
from .operands import operands

__all__ = ["gather", "prepare", "repacked", "restore", "run"]


def prepare(layout: AffineInteger, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> WordOperands:
    """Check the tensors and bring the codes into words."""
    o = operands(layout, tensors, shape)
    planes = to_planes(unpack(o.codes, o.bits, o.columns).to(torch.uint8), o.bits)
    return WordOperands(planes, o.scale, None, None, o.offset, o.bits, INTEGER, PLAIN, 1, o.group, o.columns)


def repacked(o: WordOperands) -> tuple[str, ...]:
    """The codes need not be kept beside the words."""
    return ("weight",)


def restore(layout: AffineInteger, o: WordOperands, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The codes on disk from the words that took their place."""
    return {"weight": pack(from_planes(o.planes, o.bits, shape[1]), o.bits).view(torch.uint32)}
