"""Triton kernels for weights whose codes lie in 32-bit words: the product of a few rows, and decoded rows.

Words hold the codes in the order of :mod:`.order`: code i of word j, in a chunk of 16 words, is column ``16 i + j`` of it.
Imports triton: only ``launch`` imports this file, and lazily.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTEGER = tl.constexpr(0)
E2M1 = tl.constexpr(1)
E4M3 = tl.constexpr(2)
E4M3_OR_NAN = tl.constexpr(3)
PLAIN = tl.constexpr(0)
E8M0 = tl.constexpr(1)
NESTED = tl.constexpr(2)
WORDS = tl.constexpr(16)


@triton.jit
def e4m3_value(top, MAY_BE_NAN: tl.constexpr):
    """The value fp32 of an E4M3 code in the highest byte of uint32: its fields in those of fp32, and the biases' difference."""
    size = (top >> 4) & 0x07F00000
    value = (size | (top & 0x80000000)).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
    return tl.where(size == 0x07F00000, float("nan"), value) if MAY_BE_NAN else value


@triton.jit
def value_of(
    word0, word1, word2, i, KIND: tl.constexpr, MIDDLE: tl.constexpr,
    B0: tl.constexpr, B1: tl.constexpr, B2: tl.constexpr,
):  # fmt: skip
    """The value fp32 of code i of each word uint32; of an integer (of up to three planes) its distance from MIDDLE."""
    if KIND == E2M1:
        top = word0 << (28 - i * 4)
        bits = ((top >> 6) & 0x01C00000) | (top & 0x80000000)
        return bits.to(tl.float32, bitcast=True) * 8.507059173023462e37  # 2^126
    elif KIND == E4M3:
        return e4m3_value(word0 << (24 - i * 8), False)
    elif KIND == E4M3_OR_NAN:
        return e4m3_value(word0 << (24 - i * 8), True)
    else:
        code = (word0 >> (i * B0)) & ((1 << B0) - 1)
        if B1 > 0:
            code |= ((word1 >> (i * B1)) & ((1 << B1) - 1)) << B0
        if B2 > 0:
            code |= ((word2 >> (i * B2)) & ((1 << B2) - 1)) << (B0 + B1)
        # In a float of 2^23 the lowest bits are an integer: cheaper than a conversion.
        return (code | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + MIDDLE)


@triton.jit
def load_scale(scale, at, ok, SCALE: tl.constexpr):
    """Scales fp32 at places `at`: stored so, powers of two (E8M0), or E4M3, to be divided by the scale of the whole weight."""
    stored = tl.load(scale + at, mask=ok, other=0)
    if SCALE == PLAIN:
        return stored.to(tl.float32)
    elif SCALE == E8M0:
        exponent = stored.to(tl.int32)
        bits = tl.where(exponent == 0, 0x00400000, exponent << 23)  # 2^-127 is below the normal numbers
        return tl.where(exponent == 255, float("nan"), bits.to(tl.float32, bitcast=True))
    else:
        return e4m3_value(stored.to(tl.uint32) << 24, True)


@triton.jit
def load_words(plane, rows, at, ok, stride, FIRST: tl.constexpr, BITS: tl.constexpr):
    """Words of a plane of BITS bits for places `at` of words of a plane of FIRST bits, shifted to the first code's."""
    if BITS == FIRST:
        return tl.load(plane + rows * stride + at, mask=ok, other=0).to(tl.uint32, bitcast=True)
    else:
        place = at * (32 // FIRST)
        words = tl.load(plane + rows * stride + place // (32 // BITS), mask=ok, other=0).to(
            tl.uint32, bitcast=True
        )
        return words >> ((place % (32 // BITS)) * BITS).to(tl.uint32)


@triton.jit(do_not_specialize=["M", "splits"])
def few_rows_kernel(
    x, plane0, plane1, plane2, scale, outer, zero, offset, sums, inner, left, bias, residual, y, partial, arrived,
    M, N, K, splits, words0, words1, words2, group, groups, scale_stride, rank,
    B0: tl.constexpr, B1: tl.constexpr, B2: tl.constexpr, KIND: tl.constexpr, SCALE: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr, MIDDLE: tl.constexpr, RUN: tl.constexpr, BG: tl.constexpr, BR: tl.constexpr,
    HAS_ZERO: tl.constexpr, HAS_OFFSET: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ADDEND: tl.constexpr,
    SPLIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y [M, N] = x [M, K] · W [N, K]ᵀ (+ inner [M, rank] · left [N, rank]ᵀ) for few rows.

    The codes are the first operand of the matrix units and are decoded in the registers that these read; sums of RUN codes of
    each word lie in one group and are scaled afterwards. What a group adds to all of its columns (a zero point beside MIDDLE,
    an offset) is multiplied with `sums` [M, groups] fp32, the sums of x by group, BG groups at a time (0: nothing is added).
    Programs of one tile (`splits`, at axis 2) leave their sums in `partial` [splits, M, N] fp32; the one that arrives last
    adds them, in order.
    """
    PER: tl.constexpr = 32 // B0
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    cols = tl.program_id(1) * BM + tl.arange(0, BM)
    row_ok = rows < N
    col_ok = cols < M
    rows64 = rows.to(tl.int64)[:, None]
    cols64 = cols.to(tl.int64)[None, :]
    scale_row = (rows // ROWS_PER_SCALE).to(tl.int64) * scale_stride
    chunks = words0 // WORDS
    share = tl.cdiv(chunks, splits)
    first = tl.program_id(2) * share
    last = tl.minimum(first + share, chunks)
    total = tl.zeros((BN, BM), dtype=tl.float32)
    for chunk in range(first, last):
        word = chunk * WORDS + tl.arange(0, WORDS)[None, :]
        ok = row_ok[:, None] & (word < words0)
        word0 = load_words(plane0, rows64, word, ok, words0, B0, B0)
        word1 = word0
        word2 = word0
        if B1 > 0:
            word1 = load_words(plane1, rows64, word, ok, words1, B0, B1)
        if B2 > 0:
            word2 = load_words(plane2, rows64, word, ok, words2, B0, B2)
        for run in tl.static_range(0, PER, RUN):
            part = tl.zeros((BN, BM), dtype=tl.float32)
            for i in tl.static_range(run, run + RUN):
                ks = chunk * (WORDS * PER) + i * WORDS + tl.arange(0, WORDS)
                xs = tl.load(
                    x + cols64 * K + ks[:, None], mask=col_ok[None, :] & (ks < K)[:, None], other=0.0
                )
                value = value_of(word0, word1, word2, i, KIND, MIDDLE, B0, B1, B2)
                part = tl.dot(value.to(xs.dtype), xs, part, input_precision="tf32x3")
            at = scale_row + tl.minimum((chunk * (WORDS * PER) + run * WORDS) // group, groups - 1)
            total += part * load_scale(scale, at, row_ok, SCALE)[:, None]
    if SCALE == NESTED:
        total = tl.math.div_rn(total, tl.load(outer))
    if tl.program_id(2) == 0:
        if BG > 0:
            for g0 in range(0, groups, BG):
                some = g0 + tl.arange(0, BG)
                ok = row_ok[:, None] & (some < groups)[None, :]
                at = scale_row[:, None] + some[None, :]
                if HAS_ZERO:
                    added = MIDDLE - tl.load(zero + at, mask=ok, other=MIDDLE).to(tl.float32)
                    added *= load_scale(scale, at, ok, SCALE)
                else:
                    added = tl.load(offset + at, mask=ok, other=0.0)
                xs = tl.load(
                    sums + cols64 * groups + some[:, None],
                    mask=col_ok[None, :] & (some < groups)[:, None],
                    other=0.0,
                )
                total = tl.dot(added, xs, total, input_precision="tf32x3")
        if BR > 0:
            for r0 in range(0, rank, BR):
                some = r0 + tl.arange(0, BR)
                ls = tl.load(
                    left + rows64 * rank + some[None, :],
                    mask=row_ok[:, None] & (some < rank)[None, :],
                    other=0.0,
                )
                ts = tl.load(
                    inner + cols64 * rank + some[:, None],
                    mask=col_ok[None, :] & (some < rank)[:, None],
                    other=0.0,
                )
                total = tl.dot(ls.to(ts.dtype), ts, total, input_precision="tf32x3")
    at = cols64 * N + rows64
    ok = col_ok[None, :] & row_ok[:, None]
    if SPLIT:
        plane = M.to(tl.int64) * N
        tl.store(partial + tl.program_id(2) * plane + at, total, mask=ok)
        tl.debug_barrier()
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        before = tl.atomic_add(arrived + tile, 1, sem="acq_rel")
        if before == splits - 1:
            total = tl.zeros((BN, BM), dtype=tl.float32)
            for split in range(splits):
                total += tl.load(partial + split * plane + at, mask=ok, other=0.0, cache_modifier=".cg")
            finish(total, bias, residual, y, rows, at, row_ok, ok, HAS_BIAS, HAS_ADDEND)
    else:
        finish(total, bias, residual, y, rows, at, row_ok, ok, HAS_BIAS, HAS_ADDEND)


@triton.jit
def finish(total, bias, residual, y, rows, at, row_ok, ok, HAS_BIAS: tl.constexpr, HAS_ADDEND: tl.constexpr):
    """Add bias and residual in fp32 to `total` [BN, BM], round once and store."""
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=row_ok, other=0.0).to(tl.float32)[:, None]
    if HAS_ADDEND:
        total += tl.load(residual + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["M", "first"])
def decode_kernel(
    ids, plane0, plane1, plane2, scale, outer, zero, offset, y,
    M, first, K, words0, words1, words2, group, groups, scale_stride,
    B0: tl.constexpr, B1: tl.constexpr, B2: tl.constexpr, KIND: tl.constexpr, SCALE: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr, MIDDLE: tl.constexpr,
    HAS_IDS: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_OFFSET: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """y [M, K] = rows `ids` [M] of W, or those from `first` on, decoded; operands as in :func:`few_rows_kernel`.

    A program decodes a chunk of BN rows.
    """
    PER: tl.constexpr = 32 // B0
    at = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    there = at < M
    if HAS_IDS:
        rows = tl.load(ids + at, mask=there, other=0).to(tl.int64)
    else:
        rows = at + first
    chunk = tl.program_id(0)
    word = (chunk * WORDS + tl.arange(0, WORDS))[None, :]
    ok = there[:, None] & (word < words0)
    word0 = load_words(plane0, rows[:, None], word, ok, words0, B0, B0)[:, None, :]
    word1 = word0
    word2 = word0
    if B1 > 0:
        word1 = load_words(plane1, rows[:, None], word, ok, words1, B0, B1)[:, None, :]
    if B2 > 0:
        word2 = load_words(plane2, rows[:, None], word, ok, words2, B0, B2)[:, None, :]
    code = tl.arange(0, PER)
    value = value_of(word0, word1, word2, code[None, :, None].to(tl.uint32), KIND, MIDDLE, B0, B1, B2)
    places = tl.minimum((chunk * PER + code) * WORDS // group, groups - 1)
    of = ((rows // ROWS_PER_SCALE) * scale_stride)[:, None] + places[None, :]
    row_ok = there[:, None] & (places >= 0)[None, :]
    if HAS_ZERO:
        value += MIDDLE - tl.load(zero + of, mask=row_ok, other=0).to(tl.float32)[:, :, None]
    factor = load_scale(scale, of, row_ok, SCALE)
    if SCALE == NESTED:
        factor = tl.math.div_rn(factor, tl.load(outer))
    value *= factor[:, :, None]
    if HAS_OFFSET:
        value += tl.load(offset + of, mask=row_ok, other=0.0)[:, :, None]
    column = (chunk * PER + code)[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    tl.store(
        y + (at * K)[:, None, None] + column[None, :, :],
        value.to(y.dtype.element_ty),
        mask=there[:, None, None] & (column < K)[None, :, :],
    )
