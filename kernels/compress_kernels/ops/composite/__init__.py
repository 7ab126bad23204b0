"""``y = x Wᵀ`` for weights made of parts: two factors (low rank), whole columns, and sums of parts.

Shapes: ``x`` ``[…, in]`` → ``[…, out]``. Dtypes as the parts' own operators.
Each part is multiplied by its own operator. Factors: ``x`` with ``right`` first, then with ``left``; nothing of the weight's
shape is made. Sums: every part adds into what the parts before it left, in fp32, and only the last rounds; a packed
base with a low-rank correction therefore reads each of its tensors once and writes its output once (on a GPU in one launch,
after the one for the small first factor).
Raises ``ValueError`` from ``prepare`` as the parts do, and where a column's index is out of range or not rising.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...layouts import Columns, LowRank, SumOf
from ...layouts.base import part
from ..autograd import needs_gradient
from ..dispatch import Backend, Prepared
from ..words import launch as words

Prepare = Callable[..., Prepared]
"""The operator table's own ``prepare``, for the parts."""


@dataclass(frozen=True)
class Factors:
    """Operands of ``left @ right``: two products, one after the other."""

    left: Prepared
    right: Prepared


@dataclass(frozen=True)
class SomeColumns:
    """Operands of a weight with columns at ``index``, int ``[columns]``, and zeros elsewhere."""

    index: Tensor
    values: Prepared


@dataclass(frozen=True)
class Parts:
    """Operands of a sum of weights of one shape."""

    parts: tuple[Prepared, ...]


def run_factors(
    x: Tensor, o: Factors, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x rightᵀ leftᵀ``; the result between them in the dtype of ``x``."""
    return o.left(o.right(x), bias, residual, out or x.dtype)


def run_columns(
    x: Tensor, o: SomeColumns, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x[…, index] valuesᵀ``."""
    return o.values(x.index_select(-1, o.index), bias, residual, out)


def run_sum(
    x: Tensor, o: Parts, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """The parts' products added in fp32, each through the residual of the next."""
    for part_product in o.parts[:-1]:
        residual = part_product(x, None, residual, torch.float32)
    return o.parts[-1](x, bias, residual, out or x.dtype)


def gather_factors(ids: Tensor, o: Factors, dtype: torch.dtype) -> Tensor:
    """Rows of ``left`` times ``right``, the sums in fp32."""
    rows = o.left.rows(ids, torch.float32)
    every = torch.arange(o.right.shape[0], device=rows.device)
    return (rows @ o.right.rows(every, torch.float32)).to(dtype)


def gather_columns(ids: Tensor, o: SomeColumns, dtype: torch.dtype, width: int) -> Tensor:
    """Rows with zeros beside the stored columns, ``[…, width]``."""
    values = o.values.rows(ids, dtype)
    return values.new_zeros(*ids.shape, width).index_copy(-1, o.index.long(), values)


def gather_sum(ids: Tensor, o: Parts, dtype: torch.dtype) -> Tensor:
    """The parts' rows added in fp32 and rounded once."""
    total = o.parts[0].rows(ids, torch.float32)
    for each in o.parts[1:]:
        total = total + each.rows(ids, torch.float32)
    return total.to(dtype)


def run_corrected(
    x: Tensor, o: Parts, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """A packed base and a low-rank correction on a GPU: the kernel of the base adds the second factor's product itself."""
    if needs_gradient(x, bias, residual):
        return run_sum(x, o, bias, residual, out)
    base, factors = o.parts[0].operands, o.parts[1].operands
    inner = factors.right(x)
    return words.run_corrected(x, base, inner, factors.left.operands, bias, residual, out)


def _is_corrected(parts: tuple[Prepared, ...]) -> bool:
    """Whether the parts are a base in a GPU's words and two factors stored as they are."""
    if len(parts) != 2 or not isinstance(parts[1].operands, Factors):
        return False
    dense = isinstance(parts[1].operands.left.operands, Tensor)
    return dense and isinstance(parts[0].operands, words.WordOperands)


def prepare(
    layout: LowRank | Columns | SumOf,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],
    device: torch.device | str | None,
    backend: str,
    inner: Prepare,
) -> Prepared:
    """Prepare every part with ``inner`` and put them together."""
    if isinstance(layout, LowRank):
        left, right = layout.shapes(shape)
        factors = Factors(
            inner(layout.left, part("left_", tensors), left, device, backend),
            inner(layout.right, part("right_", tensors), right, device, backend),
        )
        return _joined(factors, run_factors, gather_factors, "low_rank", (factors.right, factors.left), shape)
    if isinstance(layout, Columns):
        index = _checked_index(layout, tensors, shape)
        values = inner(layout.values, part("columns_", tensors), (shape[0], layout.count), device, backend)
        place = torch.device(device) if device is not None else index.device
        gather = functools.partial(gather_columns, width=shape[1])
        return _joined(SomeColumns(index.to(place), values), run_columns, gather, "columns", (values,), shape)
    parts = tuple(
        inner(each, layout.tensors_of(i, tensors), shape, device, backend)
        for i, each in enumerate(layout.parts)
    )
    run = run_corrected if _is_corrected(parts) else run_sum
    return _joined(Parts(parts), run, gather_sum, "sum", parts, shape)


def _joined(
    operands: Any,
    run: Callable[..., Tensor],
    gather: Callable[..., Tensor],
    name: str,
    parts: tuple[Prepared, ...],
    shape: tuple[int, int],
) -> Prepared:
    note = f"{name}: " + ", ".join(each.note for each in parts)
    backend = Backend(name, lambda device: None, lambda *a: None, run, gather=gather)
    return Prepared(operands, backend, note, (shape[0], shape[1]))


def _checked_index(layout: Columns, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
    spec = layout.specs(shape)["columns_index"]
    if "columns_index" not in tensors:
        raise ValueError(f"a columns weight of shape {list(shape)} lacks columns_index")
    index = tensors["columns_index"]
    if tuple(index.shape) != spec.shape or index.dtype != spec.dtype:
        raise ValueError(
            f"columns_index should be {spec.dtype} {list(spec.shape)}, not {index.dtype} {list(index.shape)}"
        )
    if bool((index < 0).any()) or bool((index >= shape[1]).any()):
        raise ValueError(f"columns_index names a column outside the {shape[1]} of the weight")
    if bool((index.diff() <= 0).any()):
        raise ValueError("columns_index is not rising")
    return index.contiguous()
