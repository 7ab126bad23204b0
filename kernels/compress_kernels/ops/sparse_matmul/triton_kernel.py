"""Triton kernels that decode rows of sparse weights. Imports triton: only ``triton_backend`` imports this file, and lazily."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scaled(codes, scale, zero, at, ok, MIDDLE: tl.constexpr, HAS_ZERO: tl.constexpr):
    """fp32 scale · (code − zero) for codes and places `at` of one shape."""
    centred = codes - tl.load(zero + at, mask=ok, other=0).to(tl.int32) if HAS_ZERO else codes - MIDDLE
    return centred.to(tl.float32) * tl.load(scale + at, mask=ok, other=0.0).to(tl.float32)


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


@triton.jit
def number_or_code(values, number, ok, scale, zero, at, BITS: tl.constexpr, HAS_ZERO: tl.constexpr):
    """Values fp32 by their number: stored ones (BITS = 16), or codes of a grid whose scales lie at `at`."""
    if BITS == 16:
        return tl.load(values + number, mask=ok, other=0.0).to(tl.float32)
    else:
        return scaled(
            code_at(values, number * BITS, ok, BITS), scale, zero, at, ok, 1 << (BITS - 1), HAS_ZERO
        )


@triton.jit(do_not_specialize=["M", "first"])
def mask_rows_kernel(
    ids, mask, checkpoint, values, scale, zero, y,
    M, first, K, mask_bytes, checkpoints, group, groups, scale_rows,
    BITS: tl.constexpr, STRIDE: tl.constexpr, HAS_IDS: tl.constexpr, HAS_ZERO: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [M, K] = rows `ids` [M] of W, or those from `first` on, for a bit mask and the kept values or codes in order.

    A program decodes STRIDE columns of BN rows; `checkpoint` [N, checkpoints] is the number of the first value of every STRIDE
    columns of a row.
    """
    at = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    there = at < M
    rows = tl.load(ids + at, mask=there, other=0).to(tl.int64) if HAS_IDS else at + first
    block = tl.program_id(0)
    position = tl.load(checkpoint + rows * checkpoints + block, mask=there, other=0)
    for k0 in range(block * STRIDE, tl.minimum(block * STRIDE + STRIDE, K), BK):
        ks = k0 + tl.arange(0, BK)
        ok = there[:, None] & (ks < K)[None, :]
        octet = tl.load(mask + rows[:, None] * mask_bytes + (ks // 8)[None, :], mask=ok, other=0).to(tl.int32)
        bit = (octet >> (ks % 8)[None, :]) & 1
        kept = ok & (bit == 1)
        number = position[:, None] + (tl.cumsum(bit, axis=1) - 1).to(tl.int64)
        of = (rows * scale_rows)[:, None] + tl.minimum(ks // group, groups - 1)[None, :]
        weight = number_or_code(values, number, kept, scale, zero, of, BITS, HAS_ZERO)
        tl.store(
            y + (at * K)[:, None] + ks[None, :], tl.where(kept, weight, 0.0).to(y.dtype.element_ty), mask=ok
        )
        position += tl.sum(bit, axis=1).to(tl.int64)


@triton.jit(do_not_specialize=["M", "first"])
def nm_rows_kernel(
    ids, indices, values, scale, zero, y,
    M, first, K, index_words, value_stride, group, groups, scale_rows,
    BITS: tl.constexpr, NK: tl.constexpr, MK: tl.constexpr, INDEX_BITS: tl.constexpr,
    HAS_IDS: tl.constexpr, HAS_ZERO: tl.constexpr, BN: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """y [M, K] = rows `ids` [M] of W, or those from `first` on, for NK values (BITS = 16) or codes of every MK columns.

    A program decodes BG blocks of MK columns of BN rows. `value_stride` is the length of a row of values, in values (BITS = 16)
    or in 32-bit words.
    """
    at = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    there = at < M
    rows = tl.load(ids + at, mask=there, other=0).to(tl.int64) if HAS_IDS else at + first
    block = tl.program_id(0) * BG + tl.arange(0, BG)
    ok = there[:, None] & (block < K // MK)[None, :]
    of = (rows * scale_rows)[:, None] + tl.minimum(block * MK // group, groups - 1)[None, :]
    column = tl.arange(0, MK)[None, None, :]
    weight = tl.zeros((BN, BG, MK), dtype=tl.float32)
    for i in tl.static_range(NK):
        number = (block * NK + i).to(tl.int64)[None, :]
        place = code_at(indices, (rows * index_words * 32)[:, None] + number * INDEX_BITS, ok, INDEX_BITS)
        if BITS == 16:
            value = tl.load(values + (rows * value_stride)[:, None] + number, mask=ok, other=0.0).to(
                tl.float32
            )
        else:
            codes = code_at(values, (rows * value_stride * 32)[:, None] + number * BITS, ok, BITS)
            value = scaled(codes, scale, zero, of, ok, 1 << (BITS - 1), HAS_ZERO)
        weight = tl.where(place[:, :, None] == column, value[:, :, None], weight)
    tl.store(
        y + (at * K)[:, None, None] + (block[:, None] * MK + tl.arange(0, MK)[None, :])[None, :, :],
        weight.to(y.dtype.element_ty),
        mask=ok[:, :, None] & (column >= 0),
    )
