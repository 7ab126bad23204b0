"""``y = x Wᵀ`` for W of codes of a fixed table of values with a scale by group: signed powers of two, RF8.

Shapes: ``x`` ``[…, in]`` → ``[…, out]``; any leading dimensions, empty ones too; any strides.
Dtypes: ``x`` bf16, fp16 or fp32, and the result the same unless ``out_dtype`` says otherwise.
Weight: :class:`compress_kernels.layouts.TableCodes`; its tensors as they are on disk.
Raises ``ValueError`` from ``prepare`` where a tensor's shape or dtype does not fit the layout.
Backends: ``reference`` alone, which writes W out in the dtype of ``x`` at every product: right, but slow.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...layouts import TableCodes
from ..dispatch import AUTO, Backend, Prepared, resolve
from . import reference
from .operands import TableOperands, operands

BACKENDS = {
    "reference": Backend("reference", lambda device: None, operands, reference.run, gather=reference.gather)
}


def prepare(
    layout: TableCodes,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],
    device: torch.device | str | None = None,
    backend: str = AUTO,
) -> Prepared:
    """Check the tensors and make them ready for ``backend`` on ``device`` (theirs unless given)."""
    if "weight_packed" not in tensors:
        raise ValueError(f"a table weight of shape {list(shape)} lacks weight_packed")
    place = torch.device(device) if device is not None else tensors["weight_packed"].device
    chosen, note = resolve("table_matmul", BACKENDS, place, backend)
    placed = {name: tensor.to(place) for name, tensor in tensors.items()}
    return Prepared(chosen.prepare(layout, placed, shape), chosen, note, (shape[0], shape[1]))


__all__ = ["BACKENDS", "TableOperands", "prepare"]
