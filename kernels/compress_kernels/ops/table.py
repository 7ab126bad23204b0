"""Layout → operator: the one place that knows which operator multiplies with which packed weight."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import torch
from torch import Tensor

from ..layouts import Columns, Layout, LowRank, SumOf
from . import (
    affine_matmul,
    dense_matmul,
    float_matmul,
    gguf_matmul,
    int8_matmul,
    nf4_matmul,
    packed_matmul,
    sparse_matmul,
    table_matmul,
)
from . import composite as sums
from .dispatch import AUTO, Prepared

_OPERATORS: dict[str, ModuleType] = {
    "dense": dense_matmul,
    "pack-quantized": packed_matmul,
    "int-quantized": int8_matmul,
    "nf4": nf4_matmul,
    "float": float_matmul,
    "gguf": gguf_matmul,
    "affine": affine_matmul,
    "bitmask": sparse_matmul,
    "n:m": sparse_matmul,
    "table": table_matmul,
}


def prepare(
    layout: Layout,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],
    device: torch.device | str | None = None,
    backend: str = AUTO,
) -> Prepared:
    """Make a weight ``[out, in]`` in ``layout`` ready to multiply; the result is called as ``y = prepared(x)``.

    Raises ``ValueError`` when the tensors do not fit the layout and the shape, when no operator reads the layout,
    and (``BackendError``) when ``backend`` is asked for by name and cannot run on ``device``.
    """
    if isinstance(layout, LowRank | Columns | SumOf):
        return sums.prepare(layout, tensors, shape, device, backend, prepare)
    if layout.name not in _OPERATORS:
        raise ValueError(
            f"no operator multiplies with a {layout.name} weight: there is {', '.join(_OPERATORS)}"
        )
    prepared: Prepared = _OPERATORS[layout.name].prepare(layout, tensors, shape, device, backend)
    return prepared
