"""``y = x Wᵀ`` for W of 2- to 8-bit codes with a scale and a bias by group (MLX's affine layout).

Shapes: ``x`` ``[…, in]`` → ``[…, out]``; any leading dimensions, empty ones too; any strides.
Dtypes: ``x`` bf16, fp16 or fp32, and the result the same unless ``out_dtype`` says otherwise; sums are fp32.
Weight: :class:`compress_kernels.layouts.AffineInteger`; its tensors as they are on disk, and an fp32 offset by group.
Raises ``ValueError`` from ``prepare`` where a tensor's shape or dtype does not fit the layout.
Error against ``F.linear`` with the dequantized weight: ≤ 1e-2 bf16, ≤ 2e-3 fp16, ≤ 1e-5 fp32 (relative, 2-norm).
Backends: ``cpu``, the C++ kernels of the packed product with the offsets added by group; ``triton``; ``reference``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ... import native
from ...layouts import AffineInteger
from ..cpu import unsupported_reason as cpu_unsupported
from ..dispatch import AUTO, Backend, Prepared, resolve
from ..triton import unsupported_reason as triton_unsupported
from . import cpu, reference, triton_backend
from .operands import AffineOperands, operands

BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "cpu", cpu_unsupported, operands, cpu.run, note=lambda: native.load().note, gather=cpu.gather
        ),
        Backend(
            "triton",
            triton_unsupported,
            triton_backend.prepare,
            triton_backend.run,
            repacked=triton_backend.repacked,
            restore=triton_backend.restore,
            gather=triton_backend.gather,
        ),
        Backend("reference", lambda device: None, operands, reference.run, gather=reference.gather),
    )
}


def prepare(
    layout: AffineInteger,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],
    device: torch.device | str | None = None,
    backend: str = AUTO,
) -> Prepared:
    """Check the tensors on disk and make them ready for ``backend`` on ``device`` (theirs unless given)."""
    if "weight" not in tensors:
        raise ValueError(f"an affine weight of shape {list(shape)} lacks weight")
    place = torch.device(device) if device is not None else tensors["weight"].device
    chosen, note = resolve("affine_matmul", BACKENDS, place, backend)
    placed = {name: tensor.to(place) for name, tensor in tensors.items()}
    return Prepared(chosen.prepare(layout, placed, shape), chosen, note, (shape[0], shape[1]))


__all__ = ["BACKENDS", "AffineOperands", "prepare"]
