"""The Triton backend: planes, launch settings and the launch itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...decode import Rows, planes_rows
from ...layouts import PackedInteger
from ...layouts.bits import pack, unpack
from ..autograd import product
from ..epilogue import finish
from ..triton import DECODE_ROWS, tile_k
from ..tuning import settings
from .operands import operands

GATHER = {"BN": 4, "BK": 256, "num_warps": 4, "num_stages": 1}
"""Rows and columns that one program decodes: a gather waits for memory, so that its tiles matter little."""
# Ranks of a correction that are multiplied at once.
RANKS = 16


def plane_bits(bits: int) -> tuple[int, int, int]:
    """A width as at most three powers of two, widest first: 3 = 2 + 1, 7 = 4 + 2 + 1."""
    widths = [width for width in (8, 4, 2, 1) if bits & width]
    return (*widths, 0, 0, 0)[:3]  # type: ignore[return-value]


@dataclass(frozen=True)
class PlaneOperands:
    """``planes`` int32 ``[out, words]``, lowest bits first; one plane is the tensor on disk."""

    planes: tuple[Tensor, ...]
    scale: Tensor
    zero: Tensor | None
    bits: int
    group: int
    columns: int


def prepare(layout: PackedInteger, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> PlaneOperands:
    """Split widths that are not a power of two into planes; the rest is used as it is on disk."""
    o = operands(layout, tensors, shape)
    multiple = 32 if o.bits & 1 else 16  # a word of the one-bit plane of an odd width holds 32 columns
    if o.group and o.group % multiple:
        raise ValueError(
            f"the Triton kernel of {o.bits} bits needs groups of a multiple of {multiple} columns, not {o.group}"
        )
    widths = [width for width in plane_bits(o.bits) if width]
    planes = [o.codes]
    if len(widths) > 1:
        codes, planes = unpack(o.codes, o.bits, o.columns), []
        for width in widths:
            planes.append(pack(codes & ((1 << width) - 1), width))
            codes = codes >> width
    return PlaneOperands(tuple(planes), o.scale, o.zero, o.bits, o.group, o.columns)


def _rows(
    planes: list[Tensor],
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group: int,
    columns: int,
    inner: Tensor | None,
    left: Tensor | None,
    dtype: torch.dtype,
    rows: Rows,
) -> Tensor:
    """Rows of the packed weight; the correction ``inner leftᵀ`` is no part of it."""
    if isinstance(rows, Tensor):
        return _gathered(planes, scale, zero, bits, group, columns, dtype, rows)
    widths = tuple(width for width in plane_bits(bits) if width)
    return planes_rows(planes, widths, scale, zero, columns, dtype, rows)


def _gathered(
    planes: list[Tensor],
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group: int,
    columns: int,
    dtype: torch.dtype,
    ids: Tensor,
) -> Tensor:
    """Launch :func:`triton_kernel.gather_kernel` for ids int64 ``[rows]``."""
    from .triton_kernel import gather_kernel  # noqa: PLC0415 (triton is optional)

    y = scale.new_empty((ids.numel(), columns), dtype=dtype)
    tune = {**GATHER, "BK": tile_k(GATHER["BK"], group)}
    use = [*planes, planes[0], planes[0]][:3]
    gather_kernel[(-(-ids.numel() // tune["BN"]), -(-columns // tune["BK"]))](
        ids, *use, scale, zero, y,
        ids.numel(), columns, group or columns, scale.shape[1], 0 if scale.shape[0] == 1 else scale.shape[1],
        *(plane.shape[1] for plane in use), *plane_bits(bits), zero is not None, **tune,
    )  # fmt: skip
    return y


@product("packed_triton", _rows)
def packed_triton(
    x: Tensor,
    planes: list[Tensor],
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group: int,
    columns: int,
    inner: Tensor | None,
    left: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """Launch :func:`triton_kernel.packed_kernel`; with a split of K the partial sums are added in fp32, in order.

    ``inner`` ``[…, rank]`` (in the dtype of ``x``) and ``left`` ``[out, rank]``: their product is added in the same pass.
    """
    from .triton_kernel import packed_kernel  # noqa: PLC0415 (triton is optional)

    rows = x.reshape(-1, columns).contiguous()
    m, n = rows.shape[0], planes[0].shape[0]
    shape = (*x.shape[:-1], n)
    if m == 0 or n == 0:
        return x.new_empty(shape, dtype=out)
    tune = dict(settings("packed_matmul", "decode" if m <= DECODE_ROWS else "prefill", x.device))
    tune["BK"] = tile_k(tune["BK"], group)
    split = tune["SPLIT"]
    if bias is not None:
        bias = bias.contiguous()
    if residual is not None:
        residual = residual.reshape(-1, n).contiguous()
    last = split == 1
    y = x.new_empty((split, m, n), dtype=out if last else torch.float32)
    grid = (-(-n // tune["BN"]), -(-m // tune["BM"]), split)
    b0, b1, b2 = plane_bits(bits)
    use = [*planes, planes[0], planes[0]][:3]
    rank = 0 if left is None else left.shape[1]
    if inner is not None:
        inner = inner.reshape(m, rank).contiguous()
    packed_kernel[grid](
        rows, *use, scale, zero, inner, left, bias if last else None, residual if last else None, y,
        m, n, columns, group or columns, scale.shape[1], 0 if scale.shape[0] == 1 else scale.shape[1],
        *(plane.shape[1] for plane in use), rank, b0, b1, b2, RANKS if rank else 0,
        zero is not None, last and bias is not None, last and residual is not None, **tune,
    )  # fmt: skip
    return (y[0] if last else finish(y.sum(0), bias, residual, out)).view(shape)


def run(
    x: Tensor, o: PlaneOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    return run_corrected(x, o, None, None, bias, residual, out)


def run_corrected(
    x: Tensor,
    o: PlaneOperands,
    inner: Tensor | None,
    left: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype | None,
) -> Tensor:
    """The packed product and ``inner leftᵀ`` in one pass over the output."""
    if x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"the Triton kernel takes bf16, fp16 and fp32, not {x.dtype}")
    return packed_triton(
        x,
        list(o.planes),
        o.scale,
        o.zero,
        o.bits,
        o.group,
        o.columns,
        inner,
        left,
        bias,
        residual,
        out or x.dtype,
    )


def gather(ids: Tensor, o: PlaneOperands, dtype: torch.dtype) -> Tensor:
    return torch.ops.compress_kernels.packed_triton_gather(
        ids, list(o.planes), o.scale, o.zero, o.bits, o.group, o.columns, None, None, o.columns, dtype
    )


def repacked(o: PlaneOperands) -> tuple[str, ...]:
    """What need not be kept beside the planes; nothing where the plane is the tensor on disk."""
    return ("weight_packed",) if len(o.planes) > 1 else ()


def restore(layout: PackedInteger, o: PlaneOperands, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The codes on disk from the planes that took their place."""
    codes = torch.zeros(shape, dtype=torch.int32, device=o.scale.device)
    shift = 0
    for width, plane in zip(plane_bits(o.bits), o.planes, strict=False):
        codes |= unpack(plane, width, shape[1]).to(torch.int32) << shift
        shift += width
    return {"weight_packed": pack(codes, o.bits)}
