"""The Triton kernel of the int8 product. Imports triton: only ``triton_backend`` imports this file, and lazily."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["M"])
def int8_kernel(
    x, token, weight, scale, bias, residual, y,
    M, N, K, scale_rows,
    HAS_BIAS: tl.constexpr, HAS_ADDEND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [M, N] = token [M] · scale [N] · (x int8 [M, K] · W int8 [N, K]ᵀ), summed in int32."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    cols = tl.program_id(1) * BM + tl.arange(0, BM)
    row_ok = rows < N
    col_ok = cols < M
    rows64 = rows.to(tl.int64)
    cols64 = cols.to(tl.int64)
    total = tl.zeros((BM, BN), dtype=tl.int32)
    for k0 in range(0, K, BK):
        ks = k0 + tl.arange(0, BK)
        k_ok = ks < K
        xs = tl.load(x + cols64[:, None] * K + ks[None, :], mask=col_ok[:, None] & k_ok[None, :], other=0)
        ws = tl.load(
            weight + rows64[:, None] * K + ks[None, :], mask=row_ok[:, None] & k_ok[None, :], other=0
        )
        total = tl.dot(xs, tl.trans(ws), total, out_dtype=tl.int32)
    factor = tl.load(scale + rows64 * scale_rows, mask=row_ok, other=0.0).to(tl.float32)
    result = total.to(tl.float32) * tl.load(token + cols, mask=col_ok, other=0.0)[:, None] * factor[None, :]
    at = cols64[:, None] * N + rows64[None, :]
    ok = col_ok[:, None] & row_ok[None, :]
    if HAS_BIAS:
        result += tl.load(bias + rows, mask=row_ok, other=0.0).to(tl.float32)[None, :]
    if HAS_ADDEND:
        result += tl.load(residual + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(y + at, result.to(y.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["M"])
def round_kernel(x, codes, token, M, K, BK: tl.constexpr):
    """Row program_id(0) of x [M, K] to int8 `codes`, and its scale `token` [M] fp32: max|x| / 127, of zeros 1 / 127."""
    start = tl.program_id(0).to(tl.int64) * K
    largest = tl.zeros((BK,), dtype=tl.float32)
    for k0 in range(0, K, BK):
        ks = k0 + tl.arange(0, BK)
        largest = tl.maximum(largest, tl.abs(tl.load(x + start + ks, mask=ks < K, other=0.0).to(tl.float32)))
    most = tl.max(largest, axis=0)
    scale = tl.math.div_rn(tl.where(most > 0, most, 1.0), 127.0)
    for k0 in range(0, K, BK):
        ks = k0 + tl.arange(0, BK)
        value = tl.math.div_rn(tl.load(x + start + ks, mask=ks < K, other=0.0).to(tl.float32), scale)
        rounded = (value + 12582912.0) - 12582912.0  # 1.5 · 2^23: to the nearest integer, ties to even
        rounded = tl.minimum(tl.maximum(rounded, -127.0), 127.0)
        tl.store(codes + start + ks, rounded.to(tl.int8), mask=ks < K)
    tl.store(token + tl.program_id(0), scale)
