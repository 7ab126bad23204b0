"""The Triton kernel of the packed product. Imports triton: only ``triton_backend`` imports this file, and lazily."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_plane(words, rows, row_ok, first, stride, BITS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Codes [BN, BK] of a plane of BITS bits (a power of two), each word loaded once."""
    PER: tl.constexpr = 32 // BITS
    at = first // PER + tl.arange(0, BK // PER)
    ok = row_ok[:, None] & (at < stride)[None, :]
    packed = tl.load(words + rows[:, None] * stride + at[None, :], mask=ok, other=0)
    shifts = tl.arange(0, PER) * BITS
    codes = (packed[:, :, None] >> shifts[None, None, :]) & ((1 << BITS) - 1)
    return tl.reshape(codes, (BN, BK))


@triton.jit(do_not_specialize=["M"])
def packed_kernel(
    x, plane0, plane1, plane2, scale, zero, inner, left, bias, residual, y,
    M, N, K, group, groups, scale_rows, words0, words1, words2, rank,
    B0: tl.constexpr, B1: tl.constexpr, B2: tl.constexpr, BR: tl.constexpr,
    HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ADDEND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """y[split] [M, N] = x [M, K] · W [N, K]ᵀ over this split's share of K.

    With BR > 0 the first split adds inner [M, rank] · left [N, rank]ᵀ, BR ranks at a time, into the same sums.

    A code is made of up to three planes of B0, B1 and B2 bits, lowest first. BK divides the group (or one group covers
    the row). The weight tile is bf16/fp16(scale · (code − zero)), what the dequantized layer holds, and
    lives in registers.
    """
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    cols = tl.program_id(1) * BM + tl.arange(0, BM)
    split = tl.program_id(2)
    row_ok = rows < N
    steps = tl.cdiv(K, BK)
    share = tl.cdiv(steps, SPLIT)
    first = split * share
    last = tl.minimum(first + share, steps)
    rows64 = rows.to(tl.int64)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(first, last):
        k0 = step * BK
        ks = k0 + tl.arange(0, BK)
        xs = tl.load(
            x + cols.to(tl.int64)[:, None] * K + ks[None, :],
            mask=(cols < M)[:, None] & (ks < K)[None, :],
            other=0.0,
        )
        codes = load_plane(plane0, rows64, row_ok, k0, words0, B0, BN, BK)
        if B1 > 0:
            codes |= load_plane(plane1, rows64, row_ok, k0, words1, B1, BN, BK) << B0
        if B2 > 0:
            codes |= load_plane(plane2, rows64, row_ok, k0, words2, B2, BN, BK) << (B0 + B1)
        at = rows64 * scale_rows + tl.minimum(k0 // group, groups - 1)
        factor = tl.load(scale + at, mask=row_ok, other=0.0).to(tl.float32)
        if HAS_ZERO:
            centred = codes - tl.load(zero + at, mask=row_ok, other=0).to(tl.int32)[:, None]
        else:
            centred = codes - (1 << (B0 + B1 + B2 - 1))
        weight = (centred.to(tl.float32) * factor[:, None]).to(xs.dtype)
        total = tl.dot(xs, tl.trans(weight), total, input_precision="ieee")
    if BR > 0:  # noqa: SIM102 (this is known when the kernel is compiled, what follows is not)
        if split == 0:
            for r0 in range(0, rank, BR):
                ranks = r0 + tl.arange(0, BR)
                ok = (ranks < rank)[None, :]
                ts = tl.load(
                    inner + cols.to(tl.int64)[:, None] * rank + ranks[None, :],
                    mask=(cols < M)[:, None] & ok,
                    other=0.0,
                )
                ls = tl.load(
                    left + rows64[:, None] * rank + ranks[None, :], mask=row_ok[:, None] & ok, other=0.0
                )
                total = tl.dot(ts, tl.trans(ls.to(ts.dtype)), total, input_precision="ieee")
    at = cols.to(tl.int64)[:, None] * N + rows[None, :]
    ok = (cols < M)[:, None] & row_ok[None, :]
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=row_ok, other=0.0).to(tl.float32)[None, :]
    if HAS_ADDEND:
        total += tl.load(residual + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(y + split * (M * N).to(tl.int64) + at, total.to(y.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["M"])
def gather_kernel(
    ids, plane0, plane1, plane2, scale, zero, y,
    M, K, group, groups, scale_rows, words0, words1, words2,
    B0: tl.constexpr, B1: tl.constexpr, B2: tl.constexpr, HAS_ZERO: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [M, K] = rows ids [M] of W [N, K], decoded; planes, scales and zeros as in :func:`packed_kernel`."""
    at = tl.program_id(0) * BN + tl.arange(0, BN)
    ok = at < M
    rows = tl.load(ids + at, mask=ok, other=0).to(tl.int64)
    k0 = tl.program_id(1) * BK
    ks = k0 + tl.arange(0, BK)
    codes = load_plane(plane0, rows, ok, k0, words0, B0, BN, BK)
    if B1 > 0:
        codes |= load_plane(plane1, rows, ok, k0, words1, B1, BN, BK) << B0
    if B2 > 0:
        codes |= load_plane(plane2, rows, ok, k0, words2, B2, BN, BK) << (B0 + B1)
    of = rows * scale_rows + tl.minimum(k0 // group, groups - 1)
    factor = tl.load(scale + of, mask=ok, other=0.0).to(tl.float32)
    if HAS_ZERO:
        centred = codes - tl.load(zero + of, mask=ok, other=0).to(tl.int32)[:, None]
    else:
        centred = codes - (1 << (B0 + B1 + B2 - 1))
    value = centred.to(tl.float32) * factor[:, None]
    tl.store(
        y + at.to(tl.int64)[:, None] * K + ks[None, :],
        value.to(y.dtype.element_ty),
        mask=ok[:, None] & (ks < K)[None, :],
    )
