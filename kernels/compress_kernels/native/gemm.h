// The AVX-512 floor that the formats share: preparing x, storing y, and the tiled product for more than a few rows.
#pragma once

#include <algorithm>
#include <memory>

#include "bf16.h"
#include "isa.h"
#include "scalars.h"

namespace ck::CK_ISA {

// How many bf16 numbers stand for one of x: 8, 16 and 24 bits of mantissa hold bf16, fp16 and fp32.
inline int terms_of(Dtype dtype) { return dtype == BF16 ? 1 : dtype == F16 ? 2 : 3; }

inline __mmask32 low_words(int64_t count) { return __mmask32(_bzhi_u64(0xffffffffu, std::clamp<int64_t>(count, 0, 32))); }

// Order of k inside a block of `width * 32` numbers: vector s, word w holds x[block + width * w + s]; 1 is the natural order.
struct Order {
  int width;
  int64_t block() const { return 32 * width; }

  // 32 columns in their own order to pairs as the tiles have them: x[i], x[i + width] for every i of each 2·width.
  __m512i to_pairs(__m512i v) const {
    if (width == 4)
      return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)));
    if (width == 2)
      return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15)));
    return v;
  }
};

inline float sum_bf16(const uint16_t* x, int64_t count) {
  const __m512i ones = _mm512_set1_epi16(0x3f80);
  __m512 total = _mm512_setzero_ps();
  for (int64_t k = 0; k < count; k += 32)
    total = dot(total, _mm512_maskz_loadu_epi16(low_words(count - k), x + k), ones);
  return _mm512_reduce_add_ps(total);
}

// One row of bf16 in the order of a format: vector s takes every width-th number.
inline void reorder_row(const uint16_t* x, int64_t k, Order order, int64_t kp, uint16_t* out) {
  alignas(64) uint16_t index[4][32];
  const int width = order.width;
  for (int s = 0; s < width; ++s)
    for (int w = 0; w < 32; ++w) index[s][w] = uint16_t((width * w + s) & 63);
  for (int64_t b = 0; b < kp; b += 32 * width) {
    __m512i v[4];
    for (int i = 0; i < width; ++i) v[i] = _mm512_maskz_loadu_epi16(low_words(k - b - 32 * i), x + b + 32 * i);
    for (int s = 0; s < width; ++s) {
      __m512i o = v[0];
      const __m512i at = _mm512_load_si512(index[s]);
      if (width >= 2) o = _mm512_permutex2var_epi16(v[0], at, v[1]);
      if (width == 4) o = _mm512_mask_blend_epi16(0xffff0000u, o, _mm512_permutex2var_epi16(v[2], at, v[3]));
      _mm512_storeu_si512(out + b + 32 * s, o);
    }
  }
}

// Writes row m of x as `terms` rows of bf16 [kp] in the format's order; what is beyond k is zero.
inline void prepare_row(const Input& x, int64_t m, Order order, int64_t kp, uint16_t* out) {
  const int terms = terms_of(x.dtype);
  if (terms == 1) return reorder_row(static_cast<const uint16_t*>(x.data) + m * x.k, x.k, order, kp, out);
  Buffer<uint16_t> parts(terms * x.k);
  for (int64_t i = 0; i < x.k; ++i) {
    float rest = load_scalar(x.data, x.dtype, m * x.k + i);
    for (int t = 0; t < terms; ++t) {
      const uint16_t part = float_to_bf16(rest);
      parts.data[t * x.k + i] = part;
      rest -= bf16_to_float(part);
      if (!(rest - rest == 0.f)) rest = 0.f;  // infinity and NaN stay in the first term
    }
  }
  for (int t = 0; t < terms; ++t) reorder_row(parts.data + t * x.k, x.k, order, kp, out + t * kp);
}

// Rows m0 … m1 of x, and what an output has from row m0 of x on.
inline Input rows_of(const Input& x, int64_t m0, int64_t m1) {
  return {static_cast<const char*>(x.data) + m0 * x.k * (x.dtype == F32 ? 4 : 2), x.dtype, m1 - m0, x.k};
}
inline Output rows_of(Output y, int64_t m0) {
  y.data = static_cast<char*>(y.data) + m0 * y.n * (y.dtype == F32 ? 4 : 2);
  if (y.residual) y.residual += m0 * y.n;
  return y;
}

inline void store_vector(const Output& y, int64_t m, int64_t n, __m512 v, __mmask16 keep) {
  const int64_t i = m * y.n + n;
  if (y.bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(keep, y.bias + n));
  if (y.residual) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(keep, y.residual + i));
  if (y.dtype == BF16)
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(y.data) + i, keep, to_bf16(v));
  else if (y.dtype == F16)
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(y.data) + i, keep, _mm512_cvtps_ph(v, 0));
  else
    _mm512_mask_storeu_ps(static_cast<float*>(y.data) + i, keep, v);
}

// Row r of scales or zeros `[rows or 1, groups]` as floats; 16 beyond the end are zero, so that vector loads stay inside.
inline void load_group_row(const void* data, Dtype dtype, int64_t row, int64_t groups, float* out) {
  int64_t i = 0;
  const int64_t base = row * groups;
  if (dtype == BF16 || dtype == U8) {
    for (; i < groups; i += 16) {
      const __mmask16 keep = low_words(groups - i);
      __m512i wide;
      if (dtype == U8)
        wide = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(keep, static_cast<const uint8_t*>(data) + base + i));
      else
        wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(keep, static_cast<const uint16_t*>(data) + base + i));
      const __m512 value = dtype == U8 ? _mm512_cvtepi32_ps(wide) : _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
      _mm512_storeu_ps(out + i, value);  // the buffer has room for 16 more
    }
    i = groups;
  }
  if (dtype == F32) {
    std::memcpy(out, static_cast<const float*>(data) + base, groups * sizeof(float));
    i = groups;
  }
  for (; i < groups; ++i) out[i] = load_scalar(data, dtype, base + i);
  for (int64_t j = 0; j < 16; ++j) out[groups + j] = 0.f;
}

// 16 vectors of 16 32-bit words to their transpose.
inline void transpose_16x16(__m512i (&a)[16]) {
  __m512i b[16];
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
    a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
    a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
    a[i + 4] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88);
    a[i + 12] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd);
  }
}

inline void transpose_16x16(const uint32_t* in, int64_t stride, uint32_t* out, int64_t out_stride) {
  __m512i a[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(in + i * stride);
  transpose_16x16(a);
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * out_stride, a[i]);
}

constexpr int kTileN = 32;         // output rows of a tile: two vectors
constexpr int kTileM = 12;         // 12 × 2 accumulators, two weights, one x: 27 of 32 registers
constexpr int64_t kChunkK = 4096;  // a tile of 32 × 4096 bf16 is a quarter of a megabyte: two stay in L2
constexpr int64_t kChunkM = 480;

// Pairs of k are what vdpbf16ps multiplies. In a block they go word by word, then vector by vector, so that pairs
// follow the columns: a group of columns is a stretch of pairs.
inline int64_t pair_at(int64_t word, int64_t vector, int64_t width) { return word * width + vector; }

// acc += x panel [pairs][MB] · tile [pairs][32].
template <int MB>
inline void add_pairs(const uint32_t* x, const uint32_t* tile, int64_t pairs, __m512 (&acc)[MB][2]) {
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
}

// The same without bf16 instructions: the panel becomes fp32 once for all of the tile, some pairs at a time.
template <int MB>
inline void add_wide_pairs(const uint32_t* x, const uint32_t* tile, int64_t pairs, __m512 (&acc)[MB][2]) {
  constexpr int64_t kPairs = 32;
  alignas(64) float wide[2][kPairs * MB + 16];
  for (int64_t p0 = 0; p0 < pairs; p0 += kPairs) {
    const int64_t here = std::min(kPairs, pairs - p0), words = here * MB;
    for (int64_t i = 0; i < words; i += 16) {
      const __m512i v = _mm512_maskz_loadu_epi32(__mmask16(low_words(std::min<int64_t>(words - i, 16))), x + p0 * MB + i);
      _mm512_store_ps(wide[0] + i, first_of_pairs(v));
      _mm512_store_ps(wide[1] + i, second_of_pairs(v));
    }
    for (int64_t p = 0; p < here; ++p) {
      const __m512i b0 = _mm512_load_si512(tile + (p0 + p) * kTileN);
      const __m512i b1 = _mm512_load_si512(tile + (p0 + p) * kTileN + 16);
      const __m512 b[2][2] = {{first_of_pairs(b0), first_of_pairs(b1)}, {second_of_pairs(b0), second_of_pairs(b1)}};
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i)
#pragma GCC unroll 12
        for (int m = 0; m < MB; ++m) {
          const __m512 a = _mm512_set1_ps(wide[i][p * MB + m]);
          acc[m][0] = _mm512_fmadd_ps(a, b[i][0], acc[m][0]);
          acc[m][1] = _mm512_fmadd_ps(a, b[i][1], acc[m][1]);
        }
    }
  }
}

// c [MB][32] = (add ? c : 0) + factor · (x panel [pairs][MB] · tile [pairs][32] + offset · sums); a null factor is 1.
template <int MB>
void micro(const uint32_t* x, const uint32_t* tile, int64_t pairs, float* c, bool add, const float* factor,
           const float* offset, const float* sums) {
  __m512 acc[MB][2];
  if (offset) {
    const __m512 o0 = _mm512_loadu_ps(offset), o1 = _mm512_loadu_ps(offset + 16);
#pragma GCC unroll 12
    for (int m = 0; m < MB; ++m) {
      const __m512 s = _mm512_set1_ps(sums[m]);
      acc[m][0] = _mm512_mul_ps(o0, s);
      acc[m][1] = _mm512_mul_ps(o1, s);
    }
  } else {
#pragma GCC unroll 12
    for (int m = 0; m < MB; ++m) acc[m][0] = acc[m][1] = _mm512_setzero_ps();
  }
  kMultipliesBf16 ? add_pairs<MB>(x, tile, pairs, acc) : add_wide_pairs<MB>(x, tile, pairs, acc);
  const __m512 one = _mm512_set1_ps(1.f);
  const __m512 f0 = factor ? _mm512_loadu_ps(factor) : one, f1 = factor ? _mm512_loadu_ps(factor + 16) : one;
#pragma GCC unroll 12
  for (int m = 0; m < MB; ++m) {
    const __m512 c0 = add ? _mm512_load_ps(c + m * kTileN) : _mm512_setzero_ps();
    const __m512 c1 = add ? _mm512_load_ps(c + m * kTileN + 16) : _mm512_setzero_ps();
    _mm512_store_ps(c + m * kTileN, _mm512_fmadd_ps(acc[m][0], f0, c0));
    _mm512_store_ps(c + m * kTileN + 16, _mm512_fmadd_ps(acc[m][1], f1, c1));
  }
}

using Micro = void (*)(const uint32_t*, const uint32_t*, int64_t, float*, bool, const float*, const float*, const float*);
inline Micro micro_for(int64_t mb) {
  static constexpr Micro table[kTileM] = {micro<1>, micro<2>, micro<3>, micro<4>,  micro<5>,  micro<6>,
                                          micro<7>, micro<8>, micro<9>, micro<10>, micro<11>, micro<12>};
  return table[mb - 1];
}

// A decoder that writes whole rows of bf16 needs begin(row, count) and decode(i, k0, k1, bf16*), with k1 − k0 = 128 and
// chunks of a row in order; this makes tiles of them. Its weights carry their scales.
template <typename Rows>
struct TileFromRows {
  Rows rows;
  int64_t width, count = 0;
  Buffer<uint16_t> lines{16 * 128};
  static constexpr int64_t group = 0;
  template <typename... Args>
  explicit TileFromRows(Order order, Args&&... args) : rows{std::forward<Args>(args)...}, width(order.width) {}
  const float* scale(int64_t) const { return nullptr; }
  const float* zero(int64_t) const { return nullptr; }
  void begin(int64_t first, int64_t n) { rows.begin(first, count = n); }
  void fill(int64_t k0, int64_t k1, uint32_t* tile) {
    for (int64_t h = 0; h < kTileN; h += 16)
      for (int64_t k = k0; k < k1; k += 128) {
        for (int64_t i = 0; i < 16; ++i) {
          if (h + i < count)
            rows.decode(h + i, k, k + 128, lines.data + i * 128);
          else
            std::memset(lines.data + i * 128, 0, 256);
        }
        for (int64_t v = 0; v < 4; ++v) {
          const int64_t first = (k - k0) / 2 + v / width * width * 16 + v % width;
          transpose_16x16(reinterpret_cast<uint32_t*>(lines.data) + v * 16, 64, tile + first * kTileN + h,
                          width * kTileN);
        }
      }
  }
};

// x as panels [block][pair][row of the block], and the sums over groups of columns if there are zero points.
struct Panels {
  int64_t rows, blocks, mb, pairs, groups;
  Buffer<uint32_t> data;
  Buffer<float> sums;  // [block][group][row of the block]
  Panels(const Input& x, int64_t m0, int64_t count, Order order, int64_t kp, int64_t group, bool with_sums,
         const Parallel& parallel)
      : rows(count), blocks(ceil_div(count, kTileM)), mb(ceil_div(count, blocks)), pairs(kp / 2),
        groups(with_sums ? ceil_div(x.k, group) : 0), data(blocks * mb * pairs), sums(blocks * mb * groups + 1) {
    parallel(blocks, [&](int64_t b0, int64_t b1) {
      for (int64_t b = b0; b < b1; ++b) {
        const int64_t here = rows_of(b);
        uint32_t* to = data.data + b * mb * pairs;
        const auto* raw = static_cast<const uint16_t*>(x.data) + (m0 + b * mb) * x.k;
        const __mmask16 keep = (1u << here) - 1;
        for (int64_t k = 0; k < kp; k += 32) {
          const int64_t left = std::clamp<int64_t>(x.k - k, 0, 32);
          __m512i a[16];
          for (int64_t m = 0; m < 16; ++m)
            a[m] = m < here ? order.to_pairs(_mm512_maskz_loadu_epi16(low_words(left), raw + m * x.k + k))
                            : _mm512_setzero_si512();
          transpose_16x16(a);
          for (int64_t p = 0; p < 16; ++p) _mm512_mask_storeu_epi32(to + (k / 2 + p) * here, keep, a[p]);
        }
        for (int64_t m = 0; m < here; ++m)
          for (int64_t g = 0; g < groups; ++g)
            sums.data[b * mb * groups + g * here + m] =
                sum_bf16(raw + m * x.k + g * group, std::min(group, x.k - g * group));
      }
    });
  }
  int64_t rows_of(int64_t b) const { return std::min(mb, rows - b * mb); }
};

// y = x Wᵀ for bf16 x, in tiles of 32 rows of W. `make()` gives each thread a decoder of its own with
//   begin(row, count)     the rows of the next tile
//   fill(k0, k1, tile)    columns k0…k1 (multiples of 128) as [pairs][32]
//   group, scale(g), zero(g)   0, or the columns in a group and what to multiply and to add (null: nothing), [32] each
template <typename Make>
void tiled_linear(const Input& x, const Output& y, int64_t n, Order order, bool zeros, const Parallel& parallel,
                  Make make) {
  const int64_t kp = ceil_div(x.k, 128) * 128, chunk = std::min(kChunkK, kp), tiles = ceil_div(n, kTileN);
  const int64_t group = make()->group ? make()->group : kp;
  for (int64_t m0 = 0; m0 < x.rows; m0 += kChunkM) {
    const Panels panels(x, m0, std::min(kChunkM, x.rows - m0), order, kp, group, zeros, parallel);
    // Several tiles share one reading of x, which comes from L3 when there are many rows.
    const int64_t together = panels.rows >= 96 && tiles >= 32 ? 2 : 1;
    parallel(ceil_div(tiles, together), [&](int64_t u0, int64_t u1) {
      const int64_t c_size = panels.blocks * panels.mb * kTileN, tile_size = chunk / 2 * kTileN;
      std::vector<decltype(make())> decoders;
      for (int64_t i = 0; i < together; ++i) decoders.push_back(make());
      Buffer<uint32_t> tile(together * tile_size);
      Buffer<float> c(together * c_size);
      for (int64_t u = u0; u < u1; ++u) {
        const int64_t here = std::min(together, tiles - u * together);
        for (int64_t i = 0; i < here; ++i) {
          const int64_t n0 = (u * together + i) * kTileN;
          decoders[i]->begin(n0, std::min<int64_t>(kTileN, n - n0));
        }
        for (int64_t k0 = 0; k0 < kp; k0 += chunk) {
          const int64_t k1 = std::min(k0 + chunk, kp);
          for (int64_t i = 0; i < here; ++i) decoders[i]->fill(k0, k1, tile.data + i * tile_size);
          for (int64_t b = 0; b < panels.blocks; ++b) {
            const int64_t rows = panels.rows_of(b);
            const Micro kernel = micro_for(rows);
            const uint32_t* xb = panels.data.data + b * panels.mb * panels.pairs;
            const float* sums = panels.sums.data + b * panels.mb * panels.groups;
            for (int64_t i = 0; i < here; ++i)
              for (int64_t k = k0; k < std::min(k1, x.k);) {
                const int64_t g = k / group, end = std::min(k1, k / group * group + group);
                const float* offset = zeros && k % group == 0 ? decoders[i]->zero(g) : nullptr;
                kernel(xb + k / 2 * rows, tile.data + i * tile_size + (k - k0) / 2 * kTileN, (end - k) / 2,
                       c.data + i * c_size + b * panels.mb * kTileN, k > 0, decoders[i]->scale(g), offset,
                       sums + g * rows);
                k = end;
              }
          }
        }
        for (int64_t i = 0; i < here; ++i) {
          const int64_t n0 = (u * together + i) * kTileN, count = std::min<int64_t>(kTileN, n - n0);
          const __mmask16 keep0 = count >= 16 ? 0xffff : (1u << count) - 1;
          const __mmask16 keep1 = count >= 32 ? 0xffff : count > 16 ? (1u << (count - 16)) - 1 : 0;
          for (int64_t m = 0; m < panels.rows; ++m) {
            const float* from = c.data + i * c_size + m * kTileN;
            store_vector(y, m0 + m, n0, _mm512_load_ps(from), keep0);
            if (keep1) store_vector(y, m0 + m, n0 + 16, _mm512_load_ps(from + 16), keep1);
          }
        }
      }
    });
  }
}

// 16 vectors to one that holds the sum of each.
inline __m512 sums_of(const float* vectors) {
  __m512i a[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_load_si512(vectors + 16 * i);
  transpose_16x16(a);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i)
      a[i] = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a[i]), _mm512_castsi512_ps(a[i + half])));
  return _mm512_castsi512_ps(a[0]);
}

constexpr int kDotRows = 16;           // rows of W that are multiplied with all of x before the next are expanded
constexpr int kDotColumns = 6;         // 4 × 6 accumulators, four rows of W, one of x: 29 of 32 registers
constexpr int64_t kDotChunk = 1024;    // half of those rows and 6 of x stay in L1

// sums [m][16][16] = (add ? sums : 0) + w [4][k] · x [MB][k], 16 partial sums each, into rows first … first + 3 of the 16.
template <int MB>
void dot_block(const uint16_t* w, int64_t w_stride, const uint16_t* x, int64_t x_stride, int64_t k, float* sums, bool add) {
  __m512 acc[4][MB];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r)
#pragma GCC unroll 6
    for (int m = 0; m < MB; ++m) acc[r][m] = add ? _mm512_load_ps(sums + (m * kDotRows + r) * 16) : _mm512_setzero_ps();
  for (int64_t i = 0; i < k; i += 32) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) v[r] = _mm512_load_si512(w + r * w_stride + i);
#pragma GCC unroll 6
    for (int m = 0; m < MB; ++m) {
      const __m512i xv = _mm512_load_si512(x + m * x_stride + i);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) acc[r][m] = dot(acc[r][m], v[r], xv);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r)
#pragma GCC unroll 6
    for (int m = 0; m < MB; ++m) _mm512_store_ps(sums + (m * kDotRows + r) * 16, acc[r][m]);
}

using DotBlock = void (*)(const uint16_t*, int64_t, const uint16_t*, int64_t, int64_t, float*, bool);
inline DotBlock dot_block_for(int64_t columns) {
  static constexpr DotBlock table[kDotColumns] = {dot_block<1>, dot_block<2>, dot_block<3>,
                                                  dot_block<4>, dot_block<5>, dot_block<6>};
  return table[columns - 1];
}

// y = x Wᵀ for bf16 x and rows of W that `make()(row, out, kp)` writes out as bf16 [kp] in their own order: both sides lie along k,
// so that nothing is transposed. Best for some dozens of rows of x, which stay in L2.
template <typename Make>
void rows_linear(const Input& x, const Output& y, int64_t n, const Parallel& parallel, Make make) {
  // An odd number of cache lines: rows a power of two apart would fall on each other in L1.
  const int64_t kp = (ceil_div(x.k, 32) | 1) * 32;
  Buffer<uint16_t> xp(x.rows * kp);
  for (int64_t m = 0; m < x.rows; ++m) {
    std::memcpy(xp.data + m * kp, static_cast<const uint16_t*>(x.data) + m * x.k, x.k * 2);
    std::memset(xp.data + m * kp + x.k, 0, (kp - x.k) * 2);
  }
  const int64_t blocks = ceil_div(x.rows, kDotColumns), width = ceil_div(x.rows, blocks);
  parallel(ceil_div(n, kDotRows), [&](int64_t t0, int64_t t1) {
    auto expand = make();
    Buffer<uint16_t> rows(kDotRows * kp);
    Buffer<float> sums(blocks * width * kDotRows * 16);
    for (int64_t t = t0; t < t1; ++t) {
      const int64_t n0 = t * kDotRows, count = std::min<int64_t>(kDotRows, n - n0);
      for (int64_t i = 0; i < count; ++i) expand(n0 + i, rows.data + i * kp, kp);
      if (count < kDotRows) std::memset(rows.data + count * kp, 0, (kDotRows - count) * kp * 2);
      for (int64_t k0 = 0; k0 < kp; k0 += kDotChunk) {
        const int64_t length = std::min(kDotChunk, kp - k0);
        for (int half = 0; half < kDotRows; half += kDotRows / 2)
          for (int64_t m0 = 0; m0 < x.rows; m0 += width) {
            const DotBlock kernel = dot_block_for(std::min(width, x.rows - m0));
            for (int r = half; r < half + kDotRows / 2; r += 4)
              kernel(rows.data + r * kp + k0, kp, xp.data + m0 * kp + k0, kp, length,
                     sums.data + (m0 * kDotRows + r) * 16, k0 > 0);
          }
      }
      const __mmask16 keep = __mmask16((1u << count) - 1);
      for (int64_t m = 0; m < x.rows; ++m) store_vector(y, m, n0, sums_of(sums.data + m * kDotRows * 16), keep);
    }
  });
}

}  // namespace ck::CK_ISA
