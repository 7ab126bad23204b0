"""Layout → operator: the one place that knows which operator multiplies with which packed weight."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import torch
from torch import Tensor

from . import composed_matmul, packed_matmul, sparse_matmul
from .dispatch import AUTO, Prepared
from .layouts import Layout

_OPERATORS: dict[str, ModuleType] = {
    "pack-quantized": packed_matmul,
    "bitmask": sparse_matmul,
    "n:m": sparse_matmul,
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
    if layout.name in composed_matmul.NAMES:
        return composed_matmul.prepare(layout, tensors, shape, device, backend, prepare)
    if layout.name not in _OPERATORS:
        known = ", ".join([*_OPERATORS, *composed_matmul.NAMES])
        raise ValueError(f"no operator multiplies with a {layout.name} weight: there is {known}")
    prepared: Prepared = _OPERATORS[layout.name].prepare(layout, tensors, shape, device, backend)
    return prepared
