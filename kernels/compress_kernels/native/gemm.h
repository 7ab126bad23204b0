// The AVX-512 floor that the formats share: preparing x, storing y, and the tiled product for more than a few rows.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "common.h"

namespace ck {

inline float bf16_to_float(uint16_t v) {
  uint32_t bits = uint32_t(v) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline uint16_t float_to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16) | 0x40;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float load_scalar(const void* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case BF16: return bf16_to_float(static_cast<const uint16_t*>(data)[i]);
    case F16: return _cvtsh_ss(static_cast<const uint16_t*>(data)[i]);
    case U8: return float(static_cast<const uint8_t*>(data)[i]);
    default: return static_cast<const float*>(data)[i];
  }
}

template <typename T>
struct Buffer {  // 64-byte aligned, not initialised
  explicit Buffer(int64_t count) : data(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64 + 64))) {}
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  T* data;
};


// How many bf16 numbers stand for one of x: 8, 16 and 24 bits of mantissa hold bf16, fp16 and fp32.
inline int terms_of(Dtype dtype) { return dtype == BF16 ? 1 : dtype == F16 ? 2 : 3; }

// Order of k inside a block of `width * 32` numbers: vector s, word w holds x[block + width * w + s]; 1 is the natural order.
struct Order {
  int width;
  int64_t block() const { return 32 * width; }
};

// Writes row m of x as `terms` rows of bf16 [kp] in the format's order; what is beyond k is zero.
inline void prepare_row(const Input& x, int64_t m, Order order, int64_t kp, uint16_t* out, int64_t term_stride) {
  const int terms = terms_of(x.dtype);
  const int64_t width = order.width, block = order.block();
  const auto* raw = static_cast<const uint16_t*>(x.data) + m * x.k;
  for (int64_t b = 0; b < kp; b += block)
    for (int64_t s = 0; s < width; ++s)
      for (int64_t w = 0; w < 32; ++w) {
        const int64_t i = b + width * w + s, o = b + 32 * s + w;
        if (terms == 1) {
          out[o] = i < x.k ? raw[i] : 0;
        } else {
          float rest = i < x.k ? load_scalar(x.data, x.dtype, m * x.k + i) : 0.f;
          for (int t = 0; t < terms; ++t) {
            const uint16_t part = float_to_bf16(rest);
            out[t * term_stride + o] = part;
            rest -= bf16_to_float(part);
            if (!(rest - rest == 0.f)) rest = 0.f;  // infinity and NaN stay in the first term
          }
        }
      }
}

inline void store_scalar(const Output& y, int64_t m, int64_t n, float v) {
  const int64_t i = m * y.n + n;
  if (y.bias) v += y.bias[n];
  if (y.addend) v += y.addend[i];
  if (y.dtype == BF16)
    static_cast<uint16_t*>(y.data)[i] = float_to_bf16(v);
  else if (y.dtype == F16)
    static_cast<uint16_t*>(y.data)[i] = _cvtss_sh(v, 0);
  else
    static_cast<float*>(y.data)[i] = v;
}

#ifdef __AVX512BF16__

inline __m512bh as_bh(__m512i v) { return (__m512bh)v; }
inline __m512 dot(__m512 acc, __m512i a, __m512i b) { return _mm512_dpbf16_ps(acc, as_bh(a), as_bh(b)); }

inline void store_vector(const Output& y, int64_t m, int64_t n, __m512 v, __mmask16 keep) {
  const int64_t i = m * y.n + n;
  if (y.bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(keep, y.bias + n));
  if (y.addend) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(keep, y.addend + i));
  if (y.dtype == BF16)
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(y.data) + i, keep, (__m256i)_mm512_cvtneps_pbh(v));
  else if (y.dtype == F16)
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(y.data) + i, keep, _mm512_cvtps_ph(v, 0));
  else
    _mm512_mask_storeu_ps(static_cast<float*>(y.data) + i, keep, v);
}

// Row r of scales or zeros `[rows or 1, groups]` as floats; 16 beyond the end are zero, so that vector loads stay inside.
inline void load_group_row(const void* data, Dtype dtype, int64_t row, int64_t groups, float* out) {
  int64_t i = 0;
  const int64_t base = row * groups;
  if (dtype == BF16) {
    const auto* p = static_cast<const uint16_t*>(data) + base;
    for (; i + 16 <= groups; i += 16)
      _mm512_storeu_ps(out + i, _mm512_castsi512_ps(_mm512_slli_epi32(
                                    _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(p + i))), 16)));
  }
  for (; i < groups; ++i) out[i] = load_scalar(data, dtype, base + i);
  for (int64_t j = 0; j < 16; ++j) out[groups + j] = 0.f;
}

// 16 rows of 16 32-bit words, `stride` words apart, to their transpose, `out_stride` words apart.
inline void transpose_16x16(const uint32_t* in, int64_t stride, uint32_t* out, int64_t out_stride) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(in + i * stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(out + (i)*out_stride, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
    _mm512_storeu_si512(out + (i + 8) * out_stride, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
    _mm512_storeu_si512(out + (i + 4) * out_stride, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88));
    _mm512_storeu_si512(out + (i + 12) * out_stride, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd));
  }
}

constexpr int kTileN = 32;      // output rows of a tile: two vectors
constexpr int kTileM = 12;      // 12 × 2 accumulators, two weights, one x: 27 of 32 registers
constexpr int64_t kChunkK = 4096;  // a tile of 32 × 4096 bf16 is a quarter of a megabyte: it stays in L2
constexpr int64_t kChunkM = 480;

// acc[MB][32] (+)= x panel [kp/2][MB] (pairs) · tile [kp/2][32] (pairs)
template <int MB>
inline void micro(const uint32_t* x, const uint32_t* tile, int64_t pairs, float* c, bool add) {
  __m512 acc[MB][2];
#pragma GCC unroll 12
  for (int m = 0; m < MB; ++m) {
    acc[m][0] = add ? _mm512_load_ps(c + m * kTileN) : _mm512_setzero_ps();
    acc[m][1] = add ? _mm512_load_ps(c + m * kTileN + 16) : _mm512_setzero_ps();
  }
  for (int64_t p = 0; p < pairs; ++p) {
    const __m512i b0 = _mm512_load_si512(tile + p * kTileN);
    const __m512i b1 = _mm512_load_si512(tile + p * kTileN + 16);
#pragma GCC unroll 12
    for (int m = 0; m < MB; ++m) {
      const __m512i a = _mm512_set1_epi32(int(x[p * MB + m]));
      acc[m][0] = dot(acc[m][0], a, b0);
      acc[m][1] = dot(acc[m][1], a, b1);
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < MB; ++m) {
    _mm512_store_ps(c + m * kTileN, acc[m][0]);
    _mm512_store_ps(c + m * kTileN + 16, acc[m][1]);
  }
}

using Micro = void (*)(const uint32_t*, const uint32_t*, int64_t, float*, bool);
inline Micro micro_for(int64_t mb) {
  static constexpr Micro table[kTileM] = {micro<1>, micro<2>, micro<3>, micro<4>,  micro<5>,  micro<6>,
                                          micro<7>, micro<8>, micro<9>, micro<10>, micro<11>, micro<12>};
  return table[mb - 1];
}

// y = x Wᵀ for bf16 x. `make_rows()` gives each thread its own decoder with
//   begin(row, count)            before the first chunk of a tile's rows
//   decode(i, k0, k1, bf16* out) row `row + i`, columns k0…k1 (multiples of 128) in the format's order
template <typename MakeRows>
void tiled_linear(const Input& x, const Output& y, int64_t n, Order order, const Parallel& parallel, MakeRows make_rows) {
  const int64_t kp = ceil_div(x.k, 128) * 128, pairs = kp / 2;
  for (int64_t m0 = 0; m0 < x.rows; m0 += kChunkM) {
    const int64_t rows = std::min(kChunkM, x.rows - m0);
    const int64_t blocks = ceil_div(rows, kTileM), mb = ceil_div(rows, blocks);
    Buffer<uint32_t> panel(blocks * mb * pairs);
    parallel(blocks, [&](int64_t b0, int64_t b1) {
      Buffer<uint16_t> line(kp);
      for (int64_t b = b0; b < b1; ++b) {
        const int64_t count = std::min(mb, rows - b * mb);
        uint32_t* to = panel.data + b * mb * pairs;
        for (int64_t m = 0; m < count; ++m) {
          prepare_row(x, m0 + b * mb + m, order, kp, line.data, 0);
          const auto* words = reinterpret_cast<const uint32_t*>(line.data);
          for (int64_t p = 0; p < pairs; ++p) to[p * count + m] = words[p];
        }
      }
    });
    parallel(ceil_div(n, kTileN), [&](int64_t t0, int64_t t1) {
      auto decoder = make_rows();
      const int64_t chunk = std::min(kChunkK, kp);
      Buffer<uint32_t> tile(chunk / 2 * kTileN);
      Buffer<uint16_t> lines(16 * 128);
      Buffer<float> c(blocks * mb * kTileN);
      for (int64_t t = t0; t < t1; ++t) {
        const int64_t n0 = t * kTileN, count = std::min<int64_t>(kTileN, n - n0);
        decoder.begin(n0, count);
        for (int64_t k0 = 0; k0 < kp; k0 += chunk) {
          const int64_t k1 = std::min(k0 + chunk, kp);
          for (int64_t h = 0; h < kTileN; h += 16)
            for (int64_t k = k0; k < k1; k += 128) {
              for (int64_t i = 0; i < 16; ++i) {
                if (h + i < count)
                  decoder.decode(h + i, k, k + 128, lines.data + i * 128);
                else
                  std::memset(lines.data + i * 128, 0, 256);
              }
              for (int s = 0; s < 4; ++s)
                transpose_16x16(reinterpret_cast<uint32_t*>(lines.data) + s * 16, 64,
                                tile.data + ((k - k0) / 2 + s * 16) * kTileN + h, kTileN);
            }
          for (int64_t b = 0; b < blocks; ++b) {
            const int64_t rows_here = std::min(mb, rows - b * mb);
            micro_for(rows_here)(panel.data + b * mb * pairs + k0 / 2 * rows_here, tile.data, (k1 - k0) / 2,
                                 c.data + b * mb * kTileN, k0 > 0);
          }
        }
        const __mmask16 keep0 = count >= 16 ? 0xffff : (1u << count) - 1;
        const __mmask16 keep1 = count >= 32 ? 0xffff : count > 16 ? (1u << (count - 16)) - 1 : 0;
        for (int64_t m = 0; m < rows; ++m) {
          store_vector(y, m0 + m, n0, _mm512_load_ps(c.data + m * kTileN), keep0);
          if (keep1) store_vector(y, m0 + m, n0 + 16, _mm512_load_ps(c.data + m * kTileN + 16), keep1);
        }
      }
    });
  }
}

#endif  // __AVX512BF16__

}  // namespace ck
