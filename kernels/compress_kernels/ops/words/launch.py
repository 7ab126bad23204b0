"""Products with weights in words, and their decoded rows: operands, launch settings and the launches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...decode import Rows
from ..autograd import is_plain, product
from ..epilogue import finish
from ..tuning import settings
from .order import WORDS, plane_bits

INTEGER, E2M1, E4M3, E4M3_OR_NAN = 0, 1, 2, 3
"""What a code stands for, as the kernels number it; E4M3 of which some codes may be NaN costs two instructions more."""
PLAIN, E8M0, NESTED = 0, 1, 2
"""How scales are stored: in an ordinary dtype, as powers of two, or as E4M3 divided by a scale of the whole weight."""
FEW_ROWS = 64
"""Rows of x up to which the kernel multiplies; for more the weight is decoded and torch multiplies."""
DECODE_ROWS = 16
RANKS = 16
"""Ranks of a correction that are multiplied at once."""
GROUPS = 16
"""Groups whose additions are multiplied at once."""
PIECE = 1 << 26
"""Weights that are decoded at once."""


@dataclass(frozen=True)
class WordOperands:
    """A weight in words.

    Attributes:
        planes: int32 ``[out, words]`` each, see :mod:`.order`.
        scale: ``[scale rows, groups]``: an ordinary dtype, or uint8 for E8M0 and E4M3.
        outer: fp32 ``[1]``, what nested scales are divided by.
        zero: uint8 like ``scale``; ``None`` for the middle code.
        offset: fp32 like ``scale``, added to the values of a group.
        bits: of a code.
        kind: what a code stands for.
        scale_kind: how scales are stored.
        rows_per_scale: rows that share a row of scales; one row of scales serves all rows whatever this is.
        group: columns that share a scale; ``in`` where all do.
        columns: in.
    """

    planes: tuple[Tensor, ...]
    scale: Tensor
    outer: Tensor | None
    zero: Tensor | None
    offset: Tensor | None
    bits: int
    kind: int
    scale_kind: int
    rows_per_scale: int
    group: int
    columns: int


def unreadable(group: int | str) -> str | None:
    """Why the kernels do not read groups of this size, or ``None``."""
    if isinstance(group, int) and group and group % WORDS:
        return f"the Triton kernels read groups of a multiple of {WORDS} columns, not {group}"
    return None


def _rows(
    planes: list[Tensor],
    scale: Tensor,
    outer: Tensor | None,
    zero: Tensor | None,
    offset: Tensor | None,
    bits: int,
    kind: int,
    scale_kind: int,
    rows_per_scale: int,
    group: int,
    columns: int,
    inner: Tensor | None,
    left: Tensor | None,
    dtype: torch.dtype,
    rows: Rows,
) -> Tensor:
    """Rows of the weight in words, decoded; the correction ``inner leftᵀ`` is no part of it."""
    from .triton_kernel import decode_kernel  # noqa: PLC0415 (triton is optional)

    if isinstance(rows, Tensor):
        ids, first, count = rows, 0, rows.numel()
    else:
        first, last, _ = rows.indices(planes[0].shape[0])
        ids, count = None, last - first
    y = scale.new_empty((count, columns), dtype=dtype)
    tune = settings("words", "rows", y.device)
    use = [*planes, planes[0], planes[0]][:3]
    grid = (planes[0].shape[1] // WORDS, -(-count // tune["BN"]))
    decode_kernel[grid](
        ids, *use, scale, outer, zero, offset, y,
        count, first, columns, *(plane.shape[1] for plane in use), group, scale.shape[1],
        0 if scale.shape[0] == 1 else scale.shape[1],
        *plane_bits(bits), kind, scale_kind, rows_per_scale, 1 << (bits - 1),
        ids is not None, zero is not None, offset is not None, **tune,
    )  # fmt: skip
    return y


def _multiply(
    x: Tensor,
    planes: list[Tensor],
    scale: Tensor,
    outer: Tensor | None,
    zero: Tensor | None,
    offset: Tensor | None,
    bits: int,
    kind: int,
    scale_kind: int,
    rows_per_scale: int,
    group: int,
    columns: int,
    inner: Tensor | None,
    left: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """``x Wᵀ + inner leftᵀ``: ``inner`` ``[…, rank]`` in the dtype of ``x``, ``left`` ``[out, rank]``."""
    flat = x.reshape(-1, columns).contiguous()
    m, n = flat.shape[0], planes[0].shape[0]
    shape = (*x.shape[:-1], n)
    if m == 0 or n == 0:
        return x.new_empty(shape, dtype=out)
    inner = None if inner is None else inner.reshape(m, -1).contiguous()
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else residual.reshape(m, n).contiguous()
    o = WordOperands(
        tuple(planes), scale, outer, zero, offset, bits, kind, scale_kind, rows_per_scale, group, columns
    )
    if m > FEW_ROWS:
        return dense_product(
            flat, lambda part: _rows_of(o, x.dtype, part), n, inner, left, bias, residual, out
        ).view(shape)
    return _few_rows(flat, o, inner, left, bias, residual, out).view(shape)


def _rows_of(o: WordOperands, dtype: torch.dtype, rows: slice) -> Tensor:
    return _rows(
        list(o.planes), o.scale, o.outer, o.zero, o.offset, o.bits, o.kind, o.scale_kind, o.rows_per_scale, o.group,
        o.columns, None, None, dtype, rows,
    )  # fmt: skip


def dense_product(
    x: Tensor,
    rows: Callable[[slice], Tensor],
    count: int,
    inner: Tensor | None,
    left: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """``x`` ``[rows, in]`` times the ``count`` decoded rows of W, a piece of W at a time, then what there is to add."""
    piece = max(1, PIECE // max(1, x.shape[1]))
    plain = inner is None and residual is None and out == x.dtype and (bias is None or bias.dtype == out)
    if plain and count <= piece:
        return F.linear(x, rows(slice(0, count)), bias)
    y = x.new_empty((x.shape[0], count), dtype=x.dtype if plain and bias is None else torch.float32)
    for first in range(0, count, piece):
        part = slice(first, min(first + piece, count))
        y[:, part] = wide_product(x, rows(part)) if y.dtype != x.dtype else F.linear(x, rows(part))
        if inner is not None and left is not None:
            y[:, part] += wide_product(inner, left[part].to(inner.dtype))
    return finish(y, bias, residual, out)


def wide_product(x: Tensor, weight: Tensor) -> Tensor:
    """``x weightᵀ`` as it is summed, in fp32, where torch can leave it so; else rounded to the dtype of ``x``."""
    if x.dtype != torch.float32 and x.device.type == "cuda" and "dtype" in torch.ops.aten.mm.overloads():
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    return F.linear(x, weight)


def _few_rows(
    x: Tensor,
    o: WordOperands,
    inner: Tensor | None,
    left: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """Launch :func:`triton_kernel.few_rows_kernel`."""
    from .triton_kernel import few_rows_kernel  # noqa: PLC0415 (triton is optional)

    m, n = x.shape[0], o.planes[0].shape[0]
    tune = dict(settings("words", "decode" if m <= DECODE_ROWS else "middle", x.device))
    programs = tune.pop("PROGRAMS")
    block = block_rows(m, x.dtype)
    tiles = -(-n // tune["BN"]) * -(-m // block)
    chunks = o.planes[0].shape[1] // WORDS
    splits = max(1, min(programs // tiles, chunks // 2))
    y = x.new_empty((m, n), dtype=out)
    partial = x.new_empty((splits, m, n), dtype=torch.float32) if splits > 1 else y
    arrived = torch.zeros(tiles, dtype=torch.int32, device=x.device) if splits > 1 else y
    first, second, third = plane_bits(o.bits)
    groups = o.scale.shape[1]
    adds = o.zero is not None or o.offset is not None
    sums = _group_sums(x, o.group, groups) if adds else x
    use = [*o.planes, o.planes[0], o.planes[0]][:3]
    rank = 0 if left is None else left.shape[1]
    few_rows_kernel[(-(-n // tune["BN"]), -(-m // block), splits)](
        x, *use, o.scale, o.outer, o.zero, o.offset, sums, inner, left, bias, residual, y, partial, arrived,
        m, n, o.columns, splits, *(plane.shape[1] for plane in use), o.group, groups,
        0 if o.scale.shape[0] == 1 else groups, rank,
        first, second, third, o.kind, o.scale_kind, o.rows_per_scale, 1 << (o.bits - 1),
        math.gcd(32 // first, -(-o.group // WORDS)) if groups > 1 else 32 // first,
        GROUPS if adds else 0, RANKS if rank else 0,
        o.zero is not None, o.offset is not None, bias is not None, residual is not None, splits > 1,
        BM=block, **tune,
    )  # fmt: skip
    return y


def block_rows(rows: int, dtype: torch.dtype) -> int:
    """Rows of x that a program takes; 64 rows in fp32 are more than the registers of an A100 hold."""
    if rows <= DECODE_ROWS:
        return 16
    return 32 if rows <= 32 or dtype == torch.float32 else 64


def _group_sums(x: Tensor, group: int, groups: int) -> Tensor:
    """Sums of ``x`` ``[rows, in]`` over each group, fp32 ``[rows, groups]``."""
    return x.view(x.shape[0], groups, group).sum(-1, dtype=torch.float32)


words_triton = product("words_triton", _rows)(_multiply)
"""The same product as an operator: with a backward, and for tensors without values."""


def run(
    x: Tensor, o: WordOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ``; see :mod:`compress_kernels.ops.dispatch`."""
    return run_corrected(x, o, None, None, bias, residual, out)


def run_corrected(
    x: Tensor,
    o: WordOperands,
    inner: Tensor | None,
    left: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype | None,
) -> Tensor:
    """The product and ``inner leftᵀ`` in one pass over the output."""
    multiply = _multiply if is_plain(x, inner, bias, residual) else words_triton
    return multiply(
        x, list(o.planes), o.scale, o.outer, o.zero, o.offset, o.bits, o.kind, o.scale_kind, o.rows_per_scale, o.group,
        o.columns, inner, left, bias, residual, out or x.dtype,
    )  # fmt: skip


def gather(ids: Tensor, o: WordOperands, dtype: torch.dtype) -> Tensor:
    """Rows of the weight by their ids; see :mod:`compress_kernels.ops.gather`."""
    return torch.ops.compress_kernels.words_triton_gather(
        ids, list(o.planes), o.scale, o.outer, o.zero, o.offset, o.bits, o.kind, o.scale_kind, o.rows_per_scale,
        o.group, o.columns, None, None, o.columns, dtype,
    )  # fmt: skip
