"""Triton kernels of the sparse products. Imports triton: only ``triton_backend`` imports this file, and lazily."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scaled(codes, scale, zero, at, row_ok, dtype, MIDDLE: tl.constexpr, HAS_ZERO: tl.constexpr):
    """bf16/fp16(scale · (code − zero)) for codes [BN, BK] and one group a row."""
    factor = tl.load(scale + at, mask=row_ok, other=0.0).to(tl.float32)
    if HAS_ZERO:
        centred = codes - tl.load(zero + at, mask=row_ok, other=0).to(tl.int32)[:, None]
    else:
        centred = codes - MIDDLE
    return (centred.to(tl.float32) * factor[:, None]).to(dtype)


@triton.jit
def code_at(words, place, ok, BITS: tl.constexpr):
    """The BITS-bit code that starts at bit `place` of a stream of 32-bit words, which it may straddle."""
    word = place >> 5
    shift = (place & 31).to(tl.int32)
    low = tl.load(words + word, mask=ok, other=0)
    value = (low >> shift) & ((1 << (32 - shift).to(tl.int64)) - 1).to(tl.int32)
    if 32 % BITS != 0:
        over = ok & (shift + BITS > 32)
        high = tl.load(words + word + 1, mask=over, other=0)
        value = tl.where(over, value | (high << ((32 - shift) & 31)), value)
    return value & ((1 << BITS) - 1)


@triton.jit(do_not_specialize=["M"])
def sparse_kernel(
    x, mask, checkpoint, values, scale, zero, bias, residual, y,
    M, N, K, mask_bytes, checkpoints, group, groups, scale_rows,
    BITS: tl.constexpr, STRIDE: tl.constexpr,
    HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ADDEND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """y[split] [M, N] = x [M, K] · W [N, K]ᵀ for a bit mask and the kept values (BITS = 16) or codes in order.

    `checkpoint` [N, checkpoints] is the number of the first value of every STRIDE columns of a row, so that a split
    can start in the middle. Only mask and values are read; the weight tile exists in registers alone.
    """
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    cols = tl.program_id(1) * BM + tl.arange(0, BM)
    split = tl.program_id(2)
    row_ok = rows < N
    rows64 = rows.to(tl.int64)
    share = tl.cdiv(checkpoints, SPLIT)
    first = split * share
    last = tl.minimum(first + share, checkpoints)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for block in range(first, last):
        position = tl.load(checkpoint + rows64 * checkpoints + block, mask=row_ok, other=0)
        for inner in range(tl.cdiv(tl.minimum(STRIDE, K - block * STRIDE), BK)):
            k0 = block * STRIDE + inner * BK
            ks = k0 + tl.arange(0, BK)
            xs = tl.load(
                x + cols.to(tl.int64)[:, None] * K + ks[None, :],
                mask=(cols < M)[:, None] & (ks < K)[None, :],
                other=0.0,
            )
            byte = tl.load(
                mask + rows64[:, None] * mask_bytes + (ks // 8)[None, :],
                mask=row_ok[:, None] & (ks // 8 < mask_bytes)[None, :],
                other=0,
            ).to(tl.int32)
            bit = (byte >> (ks % 8)[None, :]) & 1
            kept = bit == 1
            number = position[:, None] + (tl.cumsum(bit, axis=1) - 1).to(tl.int64)
            if BITS == 16:
                weight = tl.load(values + number, mask=kept, other=0.0).to(xs.dtype)
            else:
                codes = code_at(values, number * BITS, kept, BITS)
                at = rows64 * scale_rows + tl.minimum(k0 // group, groups - 1)
                weight = scaled(codes, scale, zero, at, row_ok, xs.dtype, 1 << (BITS - 1), HAS_ZERO)
                weight = tl.where(kept, weight, 0.0).to(xs.dtype)
            position += tl.sum(bit, axis=1).to(tl.int64)
            total = tl.dot(xs, tl.trans(weight), total, input_precision="ieee")
    at = cols.to(tl.int64)[:, None] * N + rows64[None, :]
    ok = (cols < M)[:, None] & row_ok[None, :]
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=row_ok, other=0.0).to(tl.float32)[None, :]
    if HAS_ADDEND:
        total += tl.load(residual + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(y + split * (M * N).to(tl.int64) + at, total.to(y.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["M"])
def nm_kernel(
    x, indices, values, scale, zero, bias, residual, y,
    M, N, K, index_words, value_stride, group, groups, scale_rows,
    BITS: tl.constexpr, NK: tl.constexpr, MK: tl.constexpr, INDEX_BITS: tl.constexpr,
    HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ADDEND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """y[split] [M, N] = x [M, K] · W [N, K]ᵀ for NK of every MK columns, values (BITS = 16) or codes by rows.

    `value_stride` is the length of a row of values, in values (BITS = 16) or in 32-bit words.
    """
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    cols = tl.program_id(1) * BM + tl.arange(0, BM)
    split = tl.program_id(2)
    row_ok = rows < N
    rows64 = rows.to(tl.int64)
    steps = tl.cdiv(K, BK)
    share = tl.cdiv(steps, SPLIT)
    first = split * share
    last = tl.minimum(first + share, steps)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(first, last):
        k0 = step * BK
        ks = k0 + tl.arange(0, BK)
        xs = tl.load(
            x + cols.to(tl.int64)[:, None] * K + ks[None, :],
            mask=(cols < M)[:, None] & (ks < K)[None, :],
            other=0.0,
        )
        block = k0 // MK + tl.arange(0, BK // MK)
        ok = row_ok[:, None] & (block < K // MK)[None, :]
        place = tl.arange(0, MK)[None, None, :]
        weight = tl.zeros((BN, BK // MK, MK), dtype=xs.dtype)
        for i in tl.static_range(NK):
            number = (block * NK + i).to(tl.int64)[None, :]
            where = code_at(indices, rows64[:, None] * index_words * 32 + number * INDEX_BITS, ok, INDEX_BITS)
            if BITS == 16:
                value = tl.load(values + rows64[:, None] * value_stride + number, mask=ok, other=0.0).to(
                    xs.dtype
                )
            else:
                codes = code_at(values, rows64[:, None] * value_stride * 32 + number * BITS, ok, BITS)
                at = rows64 * scale_rows + tl.minimum(k0 // group, groups - 1)
                value = scaled(codes, scale, zero, at, row_ok, xs.dtype, 1 << (BITS - 1), HAS_ZERO)
            weight = tl.where((where[:, :, None] == place) & ok[:, :, None], value[:, :, None], weight)
        total = tl.dot(xs, tl.trans(tl.reshape(weight, (BN, BK))), total, input_precision="ieee")
    at = cols.to(tl.int64)[:, None] * N + rows64[None, :]
    ok = (cols < M)[:, None] & row_ok[None, :]
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=row_ok, other=0.0).to(tl.float32)[None, :]
    if HAS_ADDEND:
        total += tl.load(residual + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(y + split * (M * N).to(tl.int64) + at, total.to(y.dtype.element_ty), mask=ok)
