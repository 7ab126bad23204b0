"""What the int8 backends read, and how tokens are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...layouts import PlainInteger, check
from ...layouts.integer import group_count


@dataclass(frozen=True)
class Int8Operands:
    """``weight`` int8 ``[out, in]`` and ``scale`` ``[out or 1, groups]``: the tensors on disk.

    ``native``: on the CPU, whether the C++ kernel takes them.
    """

    weight: Tensor
    scale: Tensor
    native: bool = False


def operands(layout: PlainInteger, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Int8Operands:
    """Check ``tensors`` against ``layout`` and ``shape`` ``[out, in]``; raises ``ValueError`` where they differ."""
    check(layout, tensors, shape)
    if len({tensor.device for tensor in tensors.values()}) > 1:
        raise ValueError("the tensors of one int8 weight are on different devices")
    scale = tensors["weight_scale"].reshape(-1, group_count(layout.group_size, shape[1])).contiguous()
    return Int8Operands(tensors["weight"].contiguous(), scale)


def round_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[rows, in]`` to int8 and their scales fp32 ``[rows, 1]``; a row of zeros has the scale 1/127."""
    wide = x.float()
    largest = wide.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0) / 127
    return (wide / scale).round_().clamp_(-127, 127).to(torch.int8), scale
