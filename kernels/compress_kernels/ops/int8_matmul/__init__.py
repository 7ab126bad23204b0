"""``y = x Wᵀ`` in int8: W stored as int8, x rounded to int8 per token when the layer runs ("W8A8").

Shapes: ``x`` ``[…, in]`` → ``[…, out]``; any leading dimensions, empty ones too; any strides.
Dtypes: ``x`` bf16, fp16 or fp32, the result the same unless ``out_dtype`` says otherwise; sums are int32, exact.
Weight: :class:`compress_kernels.layouts.PlainInteger`, scales per channel or per tensor (by groups: the reference only).
Each token is rounded symmetrically with the scale max|x| / 127. The error against the dequantized weight is that of 8-bit
activations (about 1%); against the reference, which rounds the same way, it is that of the output's dtype.
Backward: straight through the rounding, ``dx = dy W`` with the dequantized weight.
Raises ``ValueError`` from ``prepare`` where a tensor's shape or dtype does not fit the layout.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...layouts import PlainInteger
from ..dispatch import AUTO, Backend, Prepared, resolve
from ..triton import unsupported_reason as triton_unsupported
from . import cpu, reference, triton_backend
from .operands import Int8Operands, operands

BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("cpu", cpu.unsupported_reason, cpu.prepare, cpu.run, note=cpu.note, gather=cpu.gather),
        Backend("triton", triton_unsupported, operands, triton_backend.run, gather=triton_backend.gather),
        Backend("reference", lambda device: None, operands, reference.run, gather=reference.gather),
    )
}


def prepare(
    layout: PlainInteger,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],
    device: torch.device | str | None = None,
    backend: str = AUTO,
) -> Prepared:
    """Check the tensors on disk and make them ready for ``backend`` on ``device`` (theirs unless given)."""
    if "weight" not in tensors:
        raise ValueError(f"an int-quantized weight of shape {list(shape)} lacks weight")
    place = torch.device(device) if device is not None else tensors["weight"].device
    grouped = (
        "it takes one scale for each output feature, not groups"
        if isinstance(layout.group_size, int)
        else None
    )
    chosen, note = resolve("int8_matmul", BACKENDS, place, backend, {"cpu": grouped, "triton": grouped})
    placed = {name: tensor.to(place) for name, tensor in tensors.items()}
    return Prepared(chosen.prepare(layout, placed, shape), chosen, note, (shape[0], shape[1]))


__all__ = ["BACKENDS", "Int8Operands", "prepare"]
