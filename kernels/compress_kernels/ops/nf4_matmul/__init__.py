"""``y = x Wᵀ`` for W in NF4: 4-bit codes of a table of sixteen values, a scale by block of columns.

Shapes: ``x`` ``[…, in]`` → ``[…, out]``; any leading dimensions, empty ones too; any strides.
Dtypes: ``x`` bf16, fp16 or fp32, and the result the same unless ``out_dtype`` says otherwise; sums are fp32.
Weight: :class:`compress_kernels.layouts.NormalFloat4`; its tensors as they are on disk.
Raises ``ValueError`` from ``prepare`` where a tensor's shape or dtype does not fit the layout, or the state says another
shape, block or dtype.
Backends: ``cpu``, our own C++ kernel; ``bitsandbytes``, its kernels (a GPU's first choice); ``reference``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ... import native
from ...layouts import NormalFloat4
from ..cpu import unsupported_reason as cpu_unsupported
from ..dispatch import AUTO, Backend, Prepared, resolve
from . import bnb, cpu, reference
from .operands import NF4Operands, operands

BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "cpu",
            cpu_unsupported,
            operands,
            cpu.run,
            note=lambda: native.load().note,
            gather=cpu.gather,
        ),
        Backend("bitsandbytes", bnb.unsupported_reason, operands, bnb.run, gather=bnb.gather),
        Backend("reference", lambda device: None, operands, reference.run, gather=reference.gather),
    )
}


def prepare(
    layout: NormalFloat4,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],
    device: torch.device | str | None = None,
    backend: str = AUTO,
) -> Prepared:
    """Check the tensors on disk and make them ready for ``backend`` on ``device`` (theirs unless given)."""
    if "weight_packed" not in tensors:
        raise ValueError(f"an nf4 weight of shape {list(shape)} lacks weight_packed")
    place = torch.device(device) if device is not None else tensors["weight_packed"].device
    chosen, note = resolve("nf4_matmul", BACKENDS, place, backend)
    placed = {name: tensor.to(place) for name, tensor in tensors.items()}
    return Prepared(chosen.prepare(layout, placed, shape), chosen, note, (shape[0], shape[1]))


__all__ = ["BACKENDS", "NF4Operands", "prepare"]
