"""The CPU backend for 4-bit floats: the C++ kernel of tables of sixteen values (``nf4_matmul``).

That kernel reads the first code of two from the high half of a byte, so that the codes are held with their halves exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...layouts import PackedFloat, check
from ...value_types import E2M1_MAGNITUDES
from ..nf4_matmul.cpu import gather, run
from ..nf4_matmul.operands import NF4Operands

__all__ = ["gather", "operands", "repacked", "restore", "run"]


def operands(layout: PackedFloat, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> NF4Operands:
    """Check ``tensors`` and bring them into the form of NF4: scales fp32 ``[out, groups]`` and the table of E2M1."""
    check(layout, tensors, shape)
    assert isinstance(layout.group_size, int)
    table = torch.tensor([*E2M1_MAGNITUDES, *(-value for value in E2M1_MAGNITUDES)])
    scale = layout.scales(tensors, shape).contiguous()
    return NF4Operands(_exchanged(tensors["weight_packed"]), scale, table, layout.group_size)


def repacked(operands: NF4Operands) -> tuple[str, ...]:
    """The codes are held in the kernel's order alone."""
    return ("weight_packed",)


def restore(layout: PackedFloat, operands: NF4Operands, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The codes as they are on disk."""
    return {"weight_packed": _exchanged(operands.packed)}


def _exchanged(packed: Tensor) -> Tensor:
    """The halves of each byte exchanged; the inverse of itself."""
    return (packed >> 4) | (packed << 4)
