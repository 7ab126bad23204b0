"""``y = x Wᵀ`` for a W of which only some weights are stored: any of them (bitmask) or n of every m (2:4).

Shapes: ``x`` ``[…, in]`` → ``[…, out]``; any leading dimensions, empty ones too; any strides.
Dtypes: ``x`` bf16, fp16 or fp32, and the result the same unless ``out_dtype`` says otherwise; sums are fp32.
Weight: :class:`SparseBitmask` or :class:`SparseNM`, values in bf16 or codes of a 2- to 8-bit grid; values in fp16 or fp32 are
multiplied by the reference, which writes the dense weight out at every product. For the CPU the
places of N:M become a bit mask (2:4: the same size); both keep one int64 a row beside it. Values and masks are the
tensors on disk. With AVX-512 up to four rows of bf16 ``x`` (eight with codes of four bits, for which a module has
orders of its own, :mod:`.interleave` for 2:4 and :mod:`.pairs` for a bit mask) are rounded to 16-bit fixed point for
products with codes, at most 128 columns of one group at a time. The CPU kernels expand the weight in registers, with
many tokens a piece of a megabyte at a time; on a GPU it is decoded before torch's product.
Raises ``ValueError`` from ``prepare`` where a tensor's shape, dtype, device or declared shape does not fit the layout,
the mask keeps another number of weights than are stored, or a place lies outside its group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ... import native
from ..cpu import unsupported_reason as cpu_unsupported
from ..dispatch import AUTO, Backend, Prepared, resolve
from ..triton import unsupported_reason as triton_unsupported
from . import cpu, reference, triton_backend
from .interleave import interleave, remade, repacked, restore
from .operands import MaskOperands, SparseLayout, operands, unread_by_kernels

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
            repacked=repacked,
            restore=restore,
            gather=cpu.gather,
        ),
        Backend(
            "triton",
            triton_unsupported,
            triton_backend.prepare,
            triton_backend.run,
            gather=triton_backend.gather,
        ),
        Backend("reference", lambda device: None, operands, reference.run, gather=reference.gather),
    )
}


def prepare(
    layout: SparseLayout,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],
    device: torch.device | str | None = None,
    backend: str = AUTO,
) -> Prepared:
    """Check the tensors on disk and make them ready for ``backend`` on ``device`` (theirs unless given)."""
    first = next(iter(layout.specs(shape)))
    if first not in tensors:
        raise ValueError(f"a {layout.name} weight of shape {list(shape)} lacks {first}")
    place = torch.device(device) if device is not None else tensors[first].device
    reason = unread_by_kernels(layout)
    unread = {"cpu": reason, "triton": reason or triton_backend.unreadable(layout)}
    chosen, note = resolve("sparse_matmul", BACKENDS, place, backend, unread)
    placed = {name: tensor.to(place) for name, tensor in tensors.items()}
    return Prepared(chosen.prepare(layout, placed, shape), chosen, note, (shape[0], shape[1]))


__all__ = ["BACKENDS", "MaskOperands", "prepare", "remade"]
