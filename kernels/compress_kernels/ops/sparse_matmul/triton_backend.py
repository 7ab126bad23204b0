"""The Triton backend: one kernel for bit masks, one for N:M."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...decode import Rows, masked_rows, places_mask, rows_of
from ...layouts.sparse import SparseNM, index_bits, unpack_mask
from ..autograd import product
from ..epilogue import finish
from ..triton import DECODE_ROWS, tile_k
from ..tuning import settings
from .operands import SparseLayout, check_sparse, parameters

__all__ = ["prepare", "run"]

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


def prepare(layout: SparseLayout, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> TritonOperands:
    """Check the tensors; a bit mask gets the number of the first value of every ``STRIDE`` columns."""
    check_sparse(layout, tensors, shape)
    scale, zero, group = parameters(layout, tensors, shape)
    if group and group % 16:
        raise ValueError(f"the Triton kernels need groups of a multiple of 16 columns, not {group}")
    bits = 16 if layout.grid is None else layout.grid.bits
    values = tensors["weight_values" if layout.grid is None else "weight_packed"].contiguous()
    if isinstance(layout, SparseNM):
        if layout.m & (layout.m - 1):
            raise ValueError(f"the Triton kernel takes N:M with M a power of two, not {layout.m}")
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
    if checkpoint is not None:
        start = checkpoint[:, 0] * bits
        return masked_rows(places, start, values, bits, scale, zero, columns, dtype, rows)
    mask, start = places_mask(places[rows], values[rows], n, m, columns)
    scale, zero = (None if tensor is None else rows_of(tensor, rows) for tensor in (scale, zero))
    return masked_rows(mask, start, values[rows], bits, scale, zero, columns, dtype)


@product("sparse_triton", _rows)
def sparse_triton(
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
    """Launch the kernel that fits; with a split of K the partial sums are added in fp32, in order."""
    from .triton_kernel import nm_kernel, sparse_kernel  # noqa: PLC0415 (triton is optional)

    rows = x.reshape(-1, columns).contiguous()
    count, width = rows.shape[0], places.shape[0]
    shape = (*x.shape[:-1], width)
    if count == 0 or width == 0:
        return x.new_empty(shape, dtype=out)
    tune = dict(settings("sparse_matmul", "decode" if count <= DECODE_ROWS else "prefill", x.device))
    tune["BK"] = tile_k(tune["BK"], group)
    split = tune["SPLIT"]
    last = split == 1
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else residual.reshape(-1, width).contiguous()
    y = x.new_empty((split, count, width), dtype=out if last else torch.float32)
    grid = (-(-width // tune["BN"]), -(-count // tune["BM"]), split)
    groups, scale_rows = (
        (1, 0) if scale is None else (scale.shape[1], 0 if scale.shape[0] == 1 else scale.shape[1])
    )
    ends = {
        "HAS_ZERO": zero is not None,
        "HAS_BIAS": last and bias is not None,
        "HAS_ADDEND": last and residual is not None,
    }
    extra = (bias if last else None, residual if last else None, y, count, width, columns)
    if checkpoint is not None:
        sparse_kernel[grid](
            rows, places, checkpoint, values, scale, zero, *extra, places.shape[1], checkpoint.shape[1],
            group or columns, groups, scale_rows, BITS=bits, STRIDE=STRIDE, **ends, **tune,
        )  # fmt: skip
    else:
        nm_kernel[grid](
            rows, places, values, scale, zero, *extra, places.shape[1], values.shape[1],
            group or columns, groups, scale_rows, BITS=bits, NK=n, MK=m, INDEX_BITS=index_bits(m), **ends, **tune,
        )  # fmt: skip
    return (y[0] if last else finish(y.sum(0), bias, residual, out)).view(shape)


def run(
    x: Tensor, o: TritonOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    if x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"the Triton kernels take bf16, fp16 and fp32, not {x.dtype}")
    return sparse_triton(
        x, o.places, o.checkpoint, o.values, o.bits, o.n, o.m, o.scale, o.zero, o.group, o.columns,
        bias, residual, out or x.dtype,
    )  # fmt: skip


def gather(ids: Tensor, o: TritonOperands, dtype: torch.dtype) -> Tensor:
    return torch.ops.compress_kernels.sparse_triton_gather(
        ids, o.places, o.checkpoint, o.values, o.bits, o.n, o.m, o.scale, o.zero, o.group, o.columns, o.columns, dtype
    )  # fmt: skip
