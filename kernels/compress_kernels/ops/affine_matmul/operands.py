"""What the affine backends read: the tensors on disk, and the bias as an offset from the middle code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...layouts import AffineInteger, check


@dataclass(frozen=True)
class AffineOperands:
    """The operands of ``w = scale · (code − 2^(bits−1)) + offset``.

    Attributes:
        codes: int32 ``[out, words]``, the tensor on disk.
        scale: ``[out, groups]``, the tensor on disk.
        offset: fp32 ``[out, groups]``: ``bias + 2^(bits−1) · scale``, small where a group's values lie around zero.
        bits: of a code.
        group: inputs that share a scale.
        columns: in.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor
    bits: int
    group: int
    columns: int


def operands(layout: AffineInteger, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> AffineOperands:
    """Check ``tensors`` against ``layout`` and ``shape`` ``[out, in]``; raises ``ValueError`` where they differ."""
    check(layout, tensors, shape)
    scale = tensors["scales"].contiguous()
    offset = tensors["biases"].float() + scale.float() * (1 << (layout.bits - 1))
    codes = tensors["weight"].contiguous().view(torch.int32)
    return AffineOperands(codes, scale, offset, layout.bits, layout.group_size, shape[1])
