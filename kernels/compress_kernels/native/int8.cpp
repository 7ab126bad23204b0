// y = x Wᵀ for int8 W, x rounded to int8 token by token: vpdpbusd, sums exact in int32.
//
// vpdpbusd multiplies unsigned with signed bytes, so that x is stored as code + 128 and 128 · (sum of the row of W) is taken
// away at the end. Sums wrap around at 2^32, which the difference does not mind.
#include "gemm.h"

#include <cmath>

namespace ck::CK_ISA {
namespace {

constexpr int kRows = 4, kColumns = 6, kTile = 16, kHalf = 8;
constexpr int64_t kChunk = 2048;   // half a tile of W and 6 rows of x stay in L1
constexpr int64_t kTogether = 192; // rows of x that stay in L2 while all of W passes

struct Tokens {  // x as code + 128, zero-padded to [rows][kp], and max|x| / 127 of each row
  int64_t kp;    // an odd number of cache lines: rows a power of two apart would fall on each other in L1
  Buffer<uint8_t> codes;
  Buffer<float> scale;
  Tokens(const Input& x, const Parallel& parallel)
      : kp((ceil_div(x.k, 64) | 1) * 64), codes(x.rows * kp), scale(x.rows) {
    parallel(x.rows, [&](int64_t m0, int64_t m1) {
      Buffer<float> row(ceil_div(x.k, 16) * 16);
      for (int64_t m = m0; m < m1; ++m) round_row(x, m, row.data);
    });
  }

  static __m512 load(const Input& x, int64_t at, __mmask16 keep) {
    if (x.dtype == F32) return _mm512_maskz_loadu_ps(keep, static_cast<const float*>(x.data) + at);
    const __m256i half = _mm256_maskz_loadu_epi16(keep, static_cast<const uint16_t*>(x.data) + at);
    if (x.dtype == F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }

  void round_row(const Input& x, int64_t m, float* row) {
    __m512 largest = _mm512_setzero_ps();
    for (int64_t k = 0; k < x.k; k += 16) {
      const __m512 v = load(x, m * x.k + k, __mmask16(low_words(std::min<int64_t>(x.k - k, 16))));
      _mm512_store_ps(row + k, v);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(v));
    }
    const float most = _mm512_reduce_max_ps(largest);
    scale.data[m] = (most > 0 ? most : 1.f) / 127.f;
    const __m512 by = _mm512_set1_ps(scale.data[m]);
    uint8_t* out = codes.data + m * kp;
    for (int64_t k = 0; k < kp; k += 16) {
      const __m512 v = k < x.k ? _mm512_load_ps(row + k) : _mm512_setzero_ps();
      const __m512i code = _mm512_cvtps_epi32(_mm512_div_ps(v, by));  // to the nearest, halves to even
      const __m512i bound = _mm512_max_epi32(_mm512_min_epi32(code, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
      _mm_storeu_si128((__m128i*)(out + k), _mm512_cvtepi32_epi8(_mm512_add_epi32(bound, _mm512_set1_epi32(128))));
    }
  }
};

// sums [m][16 rows][16] += w [4][k] · x [MB][k]; with FIRST also the sums of the rows of W, times 128, into `total` [4][16].
template <int MB, bool FIRST>
void block(const int8_t* const* w, const uint8_t* x, int64_t stride, int64_t length, int64_t ahead, int32_t* sums,
           int32_t* total, bool add) {
  __m512i acc[kRows][MB], own[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 6
    for (int m = 0; m < MB; ++m)
      acc[r][m] = add ? _mm512_load_si512(sums + (m * kTile + r) * 16) : _mm512_setzero_si512();
    if (FIRST) own[r] = add ? _mm512_load_si512(total + r * 16) : _mm512_setzero_si512();
  }
  const __m512i middle = _mm512_set1_epi8(char(128));
  const auto step = [&](int64_t k, __mmask64 keep) __attribute__((always_inline)) {
    __m512i v[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      if (FIRST) _mm_prefetch(reinterpret_cast<const char*>(w[r] + k + ahead), _MM_HINT_T0);
      v[r] = keep == ~0ull ? _mm512_loadu_si512(w[r] + k) : _mm512_maskz_loadu_epi8(keep, w[r] + k);
      if (FIRST) own[r] = _mm512_dpbusd_epi32(own[r], middle, v[r]);
    }
#pragma GCC unroll 6
    for (int m = 0; m < MB; ++m) {
      const __m512i xv = _mm512_load_si512(x + m * stride + k);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[r][m] = _mm512_dpbusd_epi32(acc[r][m], xv, v[r]);
    }
  };
  int64_t k = 0;
  for (; k + 64 <= length; k += 64) step(k, ~0ull);
  if (k < length) step(k, (1ull << (length - k)) - 1);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 6
    for (int m = 0; m < MB; ++m) _mm512_store_si512(sums + (m * kTile + r) * 16, acc[r][m]);
    if (FIRST) _mm512_store_si512(total + r * 16, own[r]);
  }
}

using Block = void (*)(const int8_t* const*, const uint8_t*, int64_t, int64_t, int64_t, int32_t*, int32_t*, bool);
template <bool FIRST>
Block block_for(int64_t columns) {
  static constexpr Block table[kColumns] = {block<1, FIRST>, block<2, FIRST>, block<3, FIRST>,
                                            block<4, FIRST>, block<5, FIRST>, block<6, FIRST>};
  return table[columns - 1];
}

// 16 vectors to one that holds the sum of each.
__m512i sums_of(const int32_t* vectors) {
  __m512i a[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_load_si512(vectors + 16 * i);
  transpose_16x16(a);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) a[i] = _mm512_add_epi32(a[i], a[i + half]);
  return a[0];
}

}  // namespace

bool int8_linear(const Input& x, const Int8Weight& w, const Output& y, const Parallel& parallel) {
  if (w.k >= 1 << 17) return false;  // 127 · 128 · 2^17 is the first sum that int32 cannot hold
  const Tokens tokens(x, parallel);
  for (int64_t first = 0; first < x.rows; first += kTogether) {
    const int64_t rows = std::min(kTogether, x.rows - first);
    const int64_t blocks = ceil_div(rows, kColumns), width = ceil_div(rows, blocks);
    // A few rows of x stay where they are in any case: whole rows of W are one stream.
    const int64_t chunk = blocks == 1 ? tokens.kp : kChunk;
    parallel(ceil_div(w.n, kTile), [&](int64_t t0, int64_t t1) {
      Buffer<int32_t> sums((blocks * width + 1) * kTile * 16);
      int32_t* total = sums.data + blocks * width * kTile * 16;
      alignas(64) float factor[kTile];
      for (int64_t t = t0; t < t1; ++t) {
        const int64_t n0 = t * kTile, count = std::min<int64_t>(kTile, w.n - n0);
        for (int64_t k0 = 0; k0 < w.k; k0 += chunk) {
          const int8_t* from[kTile];
          for (int64_t i = 0; i < kTile; ++i) from[i] = w.data + std::min(n0 + i, w.n - 1) * w.k + k0;
          const int64_t length = std::min(chunk, w.k - k0);
          for (int64_t half = 0; half < kTile; half += kHalf)
            for (int64_t m0 = 0; m0 < rows; m0 += width)
              for (int64_t r = half; r < half + kHalf; r += kRows) {
                const int64_t here = std::min(width, rows - m0);
                (m0 ? block_for<false>(here) : block_for<true>(here))(
                    from + r, tokens.codes.data + (first + m0) * tokens.kp + k0, tokens.kp, length, kRows * w.k,
                    sums.data + (m0 * kTile + r) * 16, total + r * 16, k0 > 0);
              }
        }
        for (int64_t i = 0; i < kTile; ++i)
          factor[i] = load_scalar(w.scale, w.scale_dtype, w.per_tensor ? 0 : std::min(n0 + i, w.n - 1));
        const __m512 scale = _mm512_load_ps(factor);
        const __m512i taken = sums_of(total);
        const __mmask16 keep = __mmask16((1u << count) - 1);
        for (int64_t m = 0; m < rows; ++m) {
          const __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums_of(sums.data + m * kTile * 16), taken));
          const __m512 token = _mm512_set1_ps(tokens.scale.data[first + m]);
          store_vector(y, first + m, n0, _mm512_mul_ps(_mm512_mul_ps(sum, token), scale), keep);
        }
      }
    });
  }
  return true;
}

}  // namespace ck::CK_ISA
