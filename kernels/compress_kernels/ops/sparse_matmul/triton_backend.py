"""The Triton backend: a kernel that decodes bit masks, one that decodes N:M, and torch's product.

Kernels that expanded the weight within the product were several times slower on an H200, for one row of x too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...decode import Rows
from ...layouts.sparse import SparseNM, index_bits, unpack_mask
from ..autograd import is_plain, product
from ..tuning import settings
from ..words.launch import dense_product
from .operands import SparseLayout, check_sparse, parameters

__all__ = ["gather", "prepare", "run", "unreadable"]

# Columns between two checkpoints of a bit mask: 8 bytes in 1024 weights.
STRIDE = 1024


@dataclass(frozen=True)
class TritonOperands:
    """``places``: the mask uint8 with its ``checkpoint`` int64 ``[out, ⌈in/STRIDE⌉]``, or the N:M
    places int32 (n, m > 0).
    """

    places: Tensor
    checkpoint: Tensor | None
    values: Tensor
    bits: int
    n: int
    m: int
    scale: Tensor | None
    zero: Tensor | None
    group: int
    columns: int


def unreadable(layout: SparseLayout) -> str | None:
    """Why the kernels do not read a layout, or ``None``."""
    if isinstance(layout, SparseNM) and layout.m & (layout.m - 1):
        return f"the Triton kernel reads N:M with M a power of two, not {layout.m}"
    return None


def prepare(layout: SparseLayout, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> TritonOperands:
    """Check the tensors; a bit mask gets the number of the first value of every ``STRIDE`` columns."""
    check_sparse(layout, tensors, shape)
    scale, zero, group = parameters(layout, tensors, shape)
    bits = 16 if layout.grid is None else layout.grid.bits
    values = tensors["weight_values" if layout.grid is None else "weight_packed"].contiguous()
    if isinstance(layout, SparseNM):
        layout.columns(tensors, shape)  # raises where a place is out of range
        indices = tensors["weight_indices"].contiguous()
        return TritonOperands(indices, None, values, bits, layout.n, layout.m, scale, zero, group, shape[1])
    mask = tensors["weight_mask"].contiguous()
    kept = F.pad(unpack_mask(mask, shape[1]), (0, -shape[1] % STRIDE)).view(shape[0], -1, STRIDE).sum(-1)
    before = kept.view(-1).cumsum(0) - kept.view(-1)
    return TritonOperands(mask, before.view(shape[0], -1), values, bits, 0, 0, scale, zero, group, shape[1])


def _rows(
    places: Tensor,
    checkpoint: Tensor | None,
    values: Tensor,
    bits: int,
    n: int,
    m: int,
    scale: Tensor | None,
    zero: Tensor | None,
    group: int,
    columns: int,
    dtype: torch.dtype,
    rows: Rows,
) -> Tensor:
    """Launch the kernel that decodes rows of a bit mask or of N:M places."""
    from .triton_kernel import mask_rows_kernel, nm_rows_kernel  # noqa: PLC0415 (triton is optional)

    if isinstance(rows, Tensor):
        ids, first, count = rows, 0, rows.numel()
    else:
        first, last, _ = rows.indices(places.shape[0])
        ids, count = None, last - first
    y = values.new_empty((count, columns), dtype=dtype)
    groups, scale_rows = (
        (1, 0) if scale is None else (scale.shape[1], 0 if scale.shape[0] == 1 else scale.shape[1])
    )
    tune = settings("sparse_matmul", "rows", y.device)
    flags = {"BITS": bits, "HAS_IDS": ids is not None, "HAS_ZERO": zero is not None, "BN": tune["BN"]}
    launch = {"num_warps": tune["num_warps"], "num_stages": tune["num_stages"]}
    parts = -(-count // tune["BN"])
    if checkpoint is not None:
        mask_rows_kernel[(checkpoint.shape[1], parts)](
            ids, places, checkpoint, values, scale, zero, y, count, first, columns, places.shape[1],
            checkpoint.shape[1], group or columns, groups, scale_rows, STRIDE=STRIDE, BK=tune["BK"], **flags, **launch,
        )  # fmt: skip
        return y
    blocks = tune["BK"] // m
    nm_rows_kernel[(-(-columns // (blocks * m)), parts)](
        ids, places, values, scale, zero, y, count, first, columns, places.shape[1], values.shape[1],
        group or columns, groups, scale_rows, NK=n, MK=m, INDEX_BITS=index_bits(m), BG=blocks, **flags, **launch,
    )  # fmt: skip
    return y


def _multiply(
    x: Tensor,
    places: Tensor,
    checkpoint: Tensor | None,
    values: Tensor,
    bits: int,
    n: int,
    m: int,
    scale: Tensor | None,
    zero: Tensor | None,
    group: int,
    columns: int,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """The decoded weight, a piece at a time, and torch's product."""
    flat, width = x.reshape(-1, columns), places.shape[0]
    shape = (*x.shape[:-1], width)
    if flat.shape[0] == 0 or width == 0:
        return x.new_empty(shape, dtype=out)

    def rows(part: slice) -> Tensor:
        return _rows(places, checkpoint, values, bits, n, m, scale, zero, group, columns, x.dtype, part)

    residual = None if residual is None else residual.reshape(-1, width)
    return dense_product(flat, rows, width, None, None, bias, residual, out).view(shape)


sparse_triton = product("sparse_triton", _rows)(_multiply)
"""The same product as an operator: with a backward, and for tensors without values."""


def run(
    x: Tensor, o: TritonOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by the Triton kernels, then bias and residual; :mod:`compress_kernels.ops.sparse_matmul` says of what."""
    if x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"the Triton kernels take bf16, fp16 and fp32, not {x.dtype}")
    multiply = _multiply if is_plain(x, bias, residual) else sparse_triton
    return multiply(
        x, o.places, o.checkpoint, o.values, o.bits, o.n, o.m, o.scale, o.zero, o.group, o.columns,
        bias, residual, out or x.dtype,
    )  # fmt: skip


def gather(ids: Tensor, o: TritonOperands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    return torch.ops.compress_kernels.sparse_triton_gather(
        ids, o.places, o.checkpoint, o.values, o.bits, o.n, o.m, o.scale, o.zero, o.group, o.columns, o.columns, dtype
    )  # fmt: skip
