"""``y = x Wᵀ`` for W in the blocks of a GGUF file: ggml's Q4_0 to Q8_0, K-quants, IQ4 and MXFP4.

Shapes: ``x`` ``[…, in]`` → ``[…, out]``; any leading dimensions, empty ones too; any strides.
Dtypes: ``x`` bf16, fp16 or fp32, and the result the same unless ``out_dtype`` says otherwise.
Weight: :class:`compress_kernels.layouts.GGUFBlocks`; its tensor as it is in the file.
Raises ``ValueError`` from ``prepare`` where the tensor's shape or dtype does not fit the layout.
Backends: ``cpu``, our own C++ kernels; ``reference``, which writes W out in the dtype of ``x``. llama.cpp has those for GPUs.

Up to eight rows of ``x`` the CPU kernels round each 32 columns of ``x`` to 16-bit fixed point (24 bits where ``x`` is fp32)
with a scale of their own and multiply integers, which is exact: the error is at most max|x| / 65000 in each column. More rows
are multiplied with W written out in bf16 (fp32 without AVX-512). Error against the dequantized weight: ≤ 1e-2 bf16,
≤ 2e-3 fp16, ≤ 1e-5 fp32 (relative, 2-norm).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ... import native
from ...layouts import GGUFBlocks
from ..cpu import unsupported_reason as cpu_unsupported
from ..dispatch import AUTO, Backend, Prepared, resolve
from . import cpu, reference
from .operands import GGUFOperands, operands

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
        Backend("reference", lambda device: None, operands, reference.run, gather=reference.gather),
    )
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
