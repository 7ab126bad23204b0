"""``y = x Wᵀ`` for a W that is stored as it is: the factors of a low-rank weight, whole columns, a dense part of a sum.

Shapes: ``x`` ``[…, in]`` → ``[…, out]``. Dtypes: ``x`` and the result bf16, fp16 or fp32; sums are fp32 in the CPU
kernel, and a bias or residual is added before the result is rounded. Weight: :class:`compress_kernels.layouts.Dense`.
Raises ``ValueError`` from ``prepare`` where the tensor's shape or dtype does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import native
from ...decode import Rows
from ...layouts import Dense, check
from ..autograd import needs_gradient, product
from ..cpu import unsupported_reason as cpu_unsupported
from ..dispatch import AUTO, Backend, Prepared, resolve
from ..epilogue import finish


def weight_of(layout: Dense, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
    """The checked weight ``[out, in]``, contiguous."""
    check(layout, tensors, shape)
    return tensors["weight"].contiguous()


def run_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``F.linear`` in the dtype of ``x``, then bias and residual in fp32."""
    return finish(F.linear(x, weight.to(x.dtype)), bias, residual, out or x.dtype)


def _rows(weight: Tensor, dtype: torch.dtype, rows: Rows) -> Tensor:
    return weight[rows].to(dtype)


@product("dense_cpu", _rows)
def dense_cpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: torch.dtype
) -> Tensor:
    """The C++ product with a backward by ``x``, ``bias`` and ``residual``."""
    return torch.ops.compress_kernels.native_dense(x, weight, bias, residual, out)


def run_cpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """The C++ product; torch's where the weight needs a gradient."""
    if needs_gradient(weight):
        return run_torch(x, weight, bias, residual, out)
    if needs_gradient(x, bias, residual):
        return dense_cpu(x, weight, bias, residual, out or x.dtype)
    return torch.ops.compress_kernels.native_dense(x, weight, bias, residual, out)


def gather(ids: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of the weight, ``[…, in]``, in ``dtype``."""
    return torch.ops.compress_kernels.dense_cpu_gather(ids, weight, weight.shape[1], dtype)


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("cpu", cpu_unsupported, weight_of, run_cpu, note=lambda: native.load().note, gather=gather),
        Backend("torch", lambda device: None, weight_of, run_torch, gather=gather),
        Backend("reference", lambda device: None, weight_of, run_torch, gather=gather),
    )
}


def prepare(
    layout: Dense,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],
    device: torch.device | str | None = None,
    backend: str = AUTO,
) -> Prepared:
    """Check the weight and make it ready; ``triton`` stands for torch's own product, which is as good as it gets."""
    if "weight" not in tensors:
        raise ValueError(f"a dense weight of shape {list(shape)} lacks weight")
    place = torch.device(device) if device is not None else tensors["weight"].device
    chosen, note = resolve("dense_matmul", BACKENDS, place, "torch" if backend == "triton" else backend)
    placed = {"weight": tensors["weight"].to(place)}
    return Prepared(chosen.prepare(layout, placed, shape), chosen, note, (shape[0], shape[1]))
