"""Products with composed weights, part by part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import Prepared


@dataclass(frozen=True)
class DenseOperands:
    """``weight`` ``[out, in]``."""

    weight: Tensor


@dataclass(frozen=True)
class FactorOperands:
    """``left`` ``[out, rank]`` and ``right`` ``[rank, in]``, each ready to multiply."""

    left: Prepared
    right: Prepared


@dataclass(frozen=True)
class ColumnOperands:
    """``index`` int64 ``[count]`` of the kept columns, and ``values`` ``[out, count]``."""

    index: Tensor
    values: Prepared


@dataclass(frozen=True)
class SumOperands:
    """The parts of a sum, each ``[out, in]``."""

    parts: tuple[Prepared, ...]


Operands = DenseOperands | FactorOperands | ColumnOperands | SumOperands


def run(
    x: Tensor,
    operands: Operands,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``x Wᵀ + bias + addend``, ``[…, in] → […, out]``."""
    if isinstance(operands, FactorOperands):
        return operands.left(operands.right(x), bias, addend, out_dtype)
    if isinstance(operands, ColumnOperands):
        return operands.values(x.index_select(-1, operands.index), bias, addend, out_dtype)
    if isinstance(operands, SumOperands):
        # Partial sums stay in fp32, so that a sum is rounded once, however many parts it has.
        total = addend
        for part in operands.parts[:-1]:
            total = part(x, None, total, torch.float32)
        return operands.parts[-1](x, bias, total, out_dtype or x.dtype)
    wanted = out_dtype or x.dtype
    y = F.linear(x, operands.weight.to(x.dtype), None)
    if bias is None and addend is None:
        return y.to(wanted)
    for term in (bias, addend):
        y = y if term is None else y.float() + term.float()
    return y.to(wanted)
