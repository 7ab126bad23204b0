"""``y = x Wᵀ`` for W in the blocks of a GGUF file.

Shapes: ``x`` ``[…, in]`` → ``[…, out]``; any leading dimensions, empty ones too; any strides.
Dtypes: ``x`` bf16, fp16 or fp32, and the result the same unless ``out_dtype`` says otherwise.
Weight: :class:`compress_kernels.layouts.GGUFBlocks`; its tensor as it is in the file.
Raises ``ValueError`` from ``prepare`` where the tensor's shape or dtype does not fit the layout.
Backends: ``reference``, which writes W out in the dtype of ``x``; llama.cpp has the fast ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...layouts import GGUFBlocks, check
from ..dispatch import AUTO, Backend, Prepared, resolve
from .reference import gguf_reference


@dataclass(frozen=True)
class GGUFOperands:
    """``packed`` uint8 ``[out, bytes]``: the tensor of the file; ``type`` as :class:`GGUFBlocks` has it."""

    packed: Tensor
    type: str
    columns: int


def _operands(layout: GGUFBlocks, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> GGUFOperands:
    check(layout, tensors, shape)
    return GGUFOperands(tensors["weight_blocks"], layout.type, shape[1])


def _run(
    x: Tensor, o: GGUFOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    return gguf_reference(x, o.packed, o.type, o.columns, bias, residual, out or x.dtype)


def _gather(ids: Tensor, o: GGUFOperands, dtype: torch.dtype) -> Tensor:
    return torch.ops.compress_kernels.gguf_reference_gather(
        ids, o.packed, o.type, o.columns, o.columns, dtype
    )


BACKENDS = {
    "reference": Backend("reference", lambda device: None, _operands, _run, gather=_gather),
}


def prepare(
    layout: GGUFBlocks,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],
    device: torch.device | str | None = None,
    backend: str = AUTO,
) -> Prepared:
    """Check the tensor and make it ready for ``backend`` on ``device`` (its own unless given)."""
    if "weight_blocks" not in tensors:
        raise ValueError(f"a gguf weight of shape {list(shape)} lacks weight_blocks")
    place = torch.device(device) if device is not None else tensors["weight_blocks"].device
    chosen, note = resolve("gguf_matmul", BACKENDS, place, backend)
    placed = {name: tensor.to(place) for name, tensor in tensors.items()}
    return Prepared(chosen.prepare(layout, placed, shape), chosen, note, (shape[0], shape[1]))


__all__ = ["BACKENDS", "GGUFOperands", "prepare"]
