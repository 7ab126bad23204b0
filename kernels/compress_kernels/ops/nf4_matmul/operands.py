"""What the NF4 backends read: the tensors on disk, by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...layouts import NormalFloat4, check


@dataclass(frozen=True)
class NF4Operands:
    """``packed`` uint8 ``[out, in/2]``, the first code of two in the high half; ``absmax`` fp32 ``[out, in/block]``;
    ``table`` fp32 ``[16]``. They are the tensors on disk, not copies."""

    packed: Tensor
    absmax: Tensor
    table: Tensor
    block: int


def operands(layout: NormalFloat4, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> NF4Operands:
    """Check ``tensors`` against ``layout`` and ``shape`` ``[out, in]``; raises ``ValueError`` where they differ."""
    check(layout, tensors, shape)
    state = tensors["weight_state"]
    if state.device.type != "meta" and bytes(state.tolist()) != layout.state(shape):
        raise ValueError(f"weight_state says {bytes(state.tolist())!r} where the layer has {list(shape)}")
    table = tensors["weight_quant_map"]
    if table.device.type != "meta" and not bool(torch.isfinite(table).all()):
        raise ValueError("weight_quant_map holds NaN or infinite values")
    packed = tensors["weight_packed"].view(shape[0], -1)
    return NF4Operands(packed, tensors["weight_absmax"].view(shape[0], -1), table, layout.block)
