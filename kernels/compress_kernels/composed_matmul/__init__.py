"""``y = x Wᵀ`` for a W that is put together from others: two factors, whole columns, a sum of parts, or one dense tensor.

Shapes: ``x`` ``[…, in]`` → ``[…, out]``; any leading dimensions, empty ones too; any strides.
Dtypes: ``x`` bf16, fp16 or fp32, and the result the same unless ``out_dtype`` says otherwise.
Weight: :class:`LowRank`, :class:`Columns`, :class:`SumOf` and :class:`Dense`; every part by its own operator. The dense
weight is never formed: factors cost ``rank · (in + out)`` products, columns ``count · out``.
Raises ``ValueError`` from ``prepare`` where a tensor's shape, dtype or declared shape does not fit the layout.
Error against ``F.linear`` with the decoded weight: ≤ 1e-2 bf16, ≤ 2e-3 fp16, ≤ 1e-5 fp32 (relative, 2-norm).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..dispatch import AUTO, Backend, Prepared, resolve
from ..layouts import Columns, Dense, Layout, LowRank, SumOf, check
from ..layouts.base import part
from .reference import ColumnOperands, DenseOperands, FactorOperands, Operands, SumOperands, run

Inner = Callable[..., Prepared]
"""What makes the parts ready: ``(layout, tensors, shape, device, backend) → Prepared``."""

NAMES = (LowRank.name, Columns.name, SumOf.name, Dense.name)


def prepare(
    layout: Layout,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],
    device: torch.device | str | None,
    backend: str,
    inner: Inner,
) -> Prepared:
    """Check the tensors on disk and make every part ready on ``device`` (theirs unless given) by ``inner``.

    ``backend`` chooses among the backends of the parts: this operator only puts them together.
    """
    check(layout, tensors, shape)
    place = torch.device(device) if device is not None else next(iter(tensors.values())).device
    operands = _operands(layout, tensors, shape, place, backend, inner)
    composed, note = resolve("composed_matmul", _BACKENDS, place, AUTO)
    return Prepared(operands, composed, note, (shape[0], shape[1]))


def _operands(
    layout: Layout,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],
    place: torch.device,
    backend: str,
    inner: Inner,
) -> Operands:
    if isinstance(layout, LowRank):
        left, right = layout.shapes(shape)
        return FactorOperands(
            inner(layout.left, part("left_", tensors), left, place, backend),
            inner(layout.right, part("right_", tensors), right, place, backend),
        )
    if isinstance(layout, Columns):
        index = tensors["columns_index"].to(place).long()
        values = part("columns_", tensors)
        del values["index"]
        if bool((index < 0).any()) or bool((index >= shape[1]).any()):
            raise ValueError(f"a kept column lies outside the {shape[1]} of the weight")
        return ColumnOperands(index, inner(layout.values, values, (shape[0], layout.count), place, backend))
    if isinstance(layout, SumOf):
        parts = enumerate(layout.parts)
        return SumOperands(
            tuple(inner(each, layout.tensors_of(i, tensors), shape, place, backend) for i, each in parts)
        )
    return DenseOperands(tensors["weight"].to(place))


_BACKENDS = {"torch": Backend("torch", lambda device: None, _operands, run)}

__all__ = ["NAMES", "prepare"]
