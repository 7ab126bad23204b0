"""What the packed-matmul backends read: the tensors on disk, with the zero points unpacked to one byte each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...layouts import PackedInteger, check
from ...layouts.bits import unpack
from ...layouts.integer import group_count


@dataclass(frozen=True)
class PackedOperands:
    """``codes`` int32 ``[out, words]``; ``scale`` ``[out or 1, groups]``; ``zero`` uint8 like ``scale`` or ``None``.

    ``group`` is 0 where one scale covers the row. ``codes`` and ``scale`` are the tensors on disk, not copies, unless they are
    ``interleaved`` (:mod:`.interleave`).
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    group: int
    columns: int
    interleaved: bool = False


def operands(layout: PackedInteger, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedOperands:
    """Check ``tensors`` against ``layout`` and ``shape`` ``[out, in]``; raises ``ValueError`` where they differ."""
    check(layout, tensors, shape)
    devices = {tensor.device for name, tensor in tensors.items() if name != "weight_shape"}
    if len(devices) > 1:
        raise ValueError(
            f"the tensors of one packed weight are on different devices: {sorted(map(str, devices))}"
        )
    declared = tensors["weight_shape"]
    if declared.device.type != "meta" and tuple(declared.tolist()) != tuple(shape):
        raise ValueError(f"weight_shape says {declared.tolist()} where the layer has {list(shape)}")
    out, columns = shape
    scale = tensors["weight_scale"].reshape(-1, group_count(layout.group_size, columns)).contiguous()
    group = 0 if isinstance(layout.group_size, str) else layout.group_size
    codes = tensors["weight_packed"].contiguous()
    return PackedOperands(codes, scale, _zeros(layout, tensors, out), layout.bits, group, columns)


def _zeros(layout: PackedInteger, tensors: Mapping[str, Tensor], out: int) -> Tensor | None:
    if layout.symmetric:
        return None
    stored = tensors["weight_zero_point"]
    if layout.group_size == "tensor":
        zero = stored.view(1, 1) + (1 << (layout.bits - 1))
        if stored.device.type != "meta" and not 0 <= int(zero) < 1 << layout.bits:
            raise ValueError(f"zero point {int(stored)} is outside the {layout.bits}-bit grid")
    else:
        zero = unpack(stored.T, layout.bits, out).T
    return zero.to(torch.uint8).contiguous()
