"""``y = x Wᵀ`` for W in small floats: FP8, MXFP8, MXFP4 and NVFP4, with activations as they are.

Shapes: ``x`` ``[…, in]`` → ``[…, out]``; any leading dimensions, empty ones too; any strides.
Dtypes: ``x`` bf16, fp16 or fp32, and the result the same unless ``out_dtype`` says otherwise; sums are fp32.
Weight: :class:`compress_kernels.layouts.PackedFloat`; its tensors as they are on disk.
Raises ``ValueError`` from ``prepare`` where a tensor's shape or dtype does not fit the layout.
Backends: ``cpu``, the C++ kernel of 4-bit tables, for MXFP4 and NVFP4; ``triton``, all four on a GPU; ``reference``, which
writes W out in the dtype of ``x``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ... import native
from ...layouts import PackedFloat
from ..cpu import unsupported_reason as cpu_unsupported
from ..dispatch import AUTO, Backend, Prepared, resolve
from ..triton import unsupported_reason as triton_unsupported
from . import cpu, reference, triton_backend
from .operands import FloatOperands, operands

_REFERENCE = Backend("reference", lambda device: None, operands, reference.run, gather=reference.gather)
BACKENDS = {
    "cpu": Backend(
        "cpu",
        cpu_unsupported,
        cpu.operands,
        cpu.run,
        note=lambda: native.load().note,
        repacked=cpu.repacked,
        restore=cpu.restore,
        gather=cpu.gather,
    ),
    "triton": Backend(
        "triton",
        triton_unsupported,
        triton_backend.prepare,
        triton_backend.run,
        repacked=triton_backend.repacked,
        restore=triton_backend.restore,
        gather=triton_backend.gather,
    ),
    "reference": _REFERENCE,
}


def prepare(
    layout: PackedFloat,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],
    device: torch.device | str | None = None,
    backend: str = AUTO,
) -> Prepared:
    """Check the tensors on disk and make them ready for ``backend`` on ``device`` (theirs unless given)."""
    if "weight_scale" not in tensors:
        raise ValueError(f"a {layout.type} weight of shape {list(shape)} lacks weight_scale")
    place = torch.device(device) if device is not None else tensors["weight_scale"].device
    unread = {"cpu": None if layout.kind.bits == 4 else "it multiplies by tables of sixteen values"}
    chosen, note = resolve("float_matmul", BACKENDS, place, backend, unread)
    placed = {name: tensor.to(place) for name, tensor in tensors.items()}
    return Prepared(chosen.prepare(layout, placed, shape), chosen, note, (shape[0], shape[1]))


__all__ = ["BACKENDS", "FloatOperands", "prepare"]
