"""``y = x Wᵀ`` for W of 2- to 8-bit codes with scales by group (weight-only quantization, "W4A16").

Shapes: ``x`` ``[…, in]`` → ``[…, out]``; any leading dimensions, empty ones too; any strides.
Dtypes: ``x`` bf16, fp16 or fp32, and the result the same unless ``out_dtype`` says otherwise; sums are fp32.
Weight: :class:`compress_kernels.layouts.PackedInteger`, 2 to 8 bits, groups that divide ``in``, per channel or per
tensor, symmetric or not. The prepared form is the tensors on disk (zero points one byte each); on a GPU the codes lie in words
of another order, filled up to whole chunks of 64 to 256 columns, and groups are multiples of 16 columns.
Raises ``ValueError`` from ``prepare`` where a tensor's shape, dtype, device or declared shape does not fit the layout,
and from the call where ``x`` has the wrong number of features, dtype or device.
On a CPU a few rows of ``x`` are rounded to 16-bit fixed point: with AVX-512 up to four of bf16 (eight where a module has
laid the words of sixteen rows side by side, :mod:`.interleave`), at most 128 columns of one group at a time; with AVX2 alone
up to eight (24 bits where ``x`` is fp32), 32 columns at a time.
Error against ``F.linear`` with the dequantized weight: ≤ 1e-2 bf16, ≤ 2e-3 fp16, ≤ 1e-5 fp32 (relative, 2-norm).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ... import native
from ...layouts import PackedInteger
from ..cpu import unsupported_reason as cpu_unsupported
from ..dispatch import AUTO, Backend, Prepared, resolve
from ..triton import unsupported_reason as triton_unsupported
from ..words.launch import unreadable
from . import cpu, reference, triton_backend
from .interleave import interleave
from .operands import PackedOperands, operands

BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "cpu",
            cpu_unsupported,
            operands,
            cpu.run,
            note=lambda: native.load().note,
            arrange=interleave,
            repacked=cpu.repacked,
            restore=cpu.restore,
            gather=cpu.gather,
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
    layout: PackedInteger,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],
    device: torch.device | str | None = None,
    backend: str = AUTO,
) -> Prepared:
    """Check the tensors on disk and make them ready for ``backend`` on ``device`` (theirs unless given)."""
    place = torch.device(device) if device is not None else tensors["weight_packed"].device
    unread = {"triton": unreadable(layout.group_size)}
    chosen, note = resolve("packed_matmul", BACKENDS, place, backend, unread)
    placed = {name: tensor.to(place) for name, tensor in tensors.items()}
    return Prepared(chosen.prepare(layout, placed, shape), chosen, note, (shape[0], shape[1]))


__all__ = ["BACKENDS", "PackedOperands", "prepare"]
