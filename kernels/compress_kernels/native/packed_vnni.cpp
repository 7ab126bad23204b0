// y = x Wᵀ for a few rows of bf16 x and W of 2- to 8-bit codes, in integers: x as two signed bytes for each column (16-bit fixed
// point), the step chosen for every lane of 4 to 16 columns by itself, so that what is lost is far below a bf16's own rounding.
//
// vpdpbusd multiplies 64 codes with 64 bytes of x where vdpbf16ps, at half its rate on many CPUs, multiplies 32, and codes of
// 2, 4 and 8 bits need no table: a shift and a mask. Sums of a lane are exact in int32.
#include "gemm.h"

namespace ck::avx512 {
namespace {

constexpr int kRows = 4;          // of W at once
constexpr int64_t kAhead = 2048;  // bytes of a row that are asked for before they are used
constexpr float kLargest = 32512;  // 127 · 256: the largest fixed-point number whose upper byte is signed

constexpr float kSmallest = 1e-30f;  // lanes of smaller numbers are zero

template <int B>
struct Codes {
  static constexpr bool whole = B == 2 || B == 4 || B == 8;  // codes do not cross bytes
  static constexpr int parts = whole ? 8 / B : 1;            // vectors of codes in a vector of bytes
  static constexpr int64_t columns = 64 * parts;
  static constexpr int64_t bytes = columns * B / 8;
  static constexpr int lane = 4 * parts;                     // columns that share a lane
};

// Where each of 64 codes begins, for codes that cross bytes: eight of them are B bytes, which go to one 64-bit word.
template <int B>
struct Spread {
  __m512i from, shift;
  Spread() {
    alignas(64) uint8_t at[64], bit[64];
    for (int i = 0; i < 64; ++i) {
      at[i] = uint8_t(i / 8 * B + std::min(i % 8, B - 1));
      bit[i] = uint8_t(i % 8 * B);
    }
    from = _mm512_load_si512(at), shift = _mm512_load_si512(bit);
  }
};

template <int B>
inline void unpack(__m512i raw, const Spread<B>& spread, __m512i (&codes)[Codes<B>::parts]) {
  const __m512i mask = _mm512_set1_epi8(char((1 << B) - 1));
  if constexpr (B == 8) {
    codes[0] = raw;
  } else if constexpr (Codes<B>::whole) {
#pragma GCC unroll 4
    for (int p = 0; p < Codes<B>::parts; ++p) codes[p] = _mm512_and_si512(p ? _mm512_srli_epi16(raw, p * B) : raw, mask);
  } else {
    codes[0] = _mm512_and_si512(_mm512_multishift_epi64_epi8(spread.shift, _mm512_permutexvar_epi8(spread.from, raw)), mask);
  }
}

// x in fixed point, [vectors] of each: digits in the order of the codes, the step of each lane, and what the lane's codes owe for
// not being centred.
template <int B>
struct Digits {
  using C = Codes<B>;
  int64_t vectors;
  Buffer<int8_t> low, high;     // [rows][vectors][parts][64]
  Buffer<float> step, sum;      // [rows][vectors][16]; sum of the lane's fixed-point numbers
  Buffer<int32_t> centre;       // −middle · sum
  Digits(const Input& x, int64_t count)
      : vectors(count), low(x.rows * count * C::columns), high(x.rows * count * C::columns), step(x.rows * count * 16),
        sum(x.rows * count * 16), centre(x.rows * count * 16) {
    for (int64_t m = 0; m < x.rows; ++m) prepare(static_cast<const uint16_t*>(x.data) + m * x.k, x.k, m * count);
  }

  // Every number of a lane becomes the largest (sum) of that lane.
  template <typename Combine>
  static __m512i over_lane(__m512i v, Combine combine) {
    v = combine(v, _mm512_shuffle_epi32(v, _MM_PERM_ENUM(0xb1)));
    v = combine(v, _mm512_shuffle_epi32(v, _MM_PERM_ENUM(0x4e)));
    if (C::lane >= 8) v = combine(v, _mm512_shuffle_i32x4(v, v, 0xb1));
    if (C::lane >= 16) v = combine(v, _mm512_shuffle_i32x4(v, v, 0x4e));
    return v;
  }

  // 64 bytes of neighbouring columns to the 64 / parts of each part.
  static void split(const int8_t* columns, int8_t* parts) {
    for (int64_t c = 0; c < C::columns; c += 64) {
      const __m512i v = _mm512_load_si512(columns + c);
#pragma GCC unroll 4
      for (int p = 0; p < C::parts; ++p) {
        int8_t* to = parts + 64 * p + c / C::parts;
        if constexpr (C::parts == 1) _mm512_storeu_si512(to, v);
        if constexpr (C::parts == 2) _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi16_epi8(p ? _mm512_srli_epi16(v, 8) : v));
        if constexpr (C::parts == 4) _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(_mm512_srli_epi32(v, 8 * p)));
      }
    }
  }

  void prepare(const uint16_t* x, int64_t k, int64_t first) {
    alignas(64) float steps[C::columns];
    alignas(64) int32_t sums[C::columns];
    alignas(64) int8_t lower[C::columns], upper[C::columns];
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t at = (first + v) * 16, base = v * C::columns;
      for (int64_t c = 0; c < C::columns; c += 16) {
        const __mmask16 keep = __mmask16(low_words(std::min<int64_t>(k - base - c, 16)));
        const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(keep, x + base + c)), 16);
        const __m512 value = _mm512_castsi512_ps(wide);
        // As integers, so that infinity and NaN win: the step of their lane, and with it the result, is not finite.
        const __m512 largest = _mm512_castsi512_ps(over_lane(_mm512_castps_si512(_mm512_abs_ps(value)),
                                                             [](__m512i a, __m512i b) { return _mm512_max_epi32(a, b); }));
        const __mmask16 some = _mm512_cmp_ps_mask(largest, _mm512_set1_ps(kSmallest), _CMP_GT_OQ);
        const __m512 inverse = _mm512_maskz_div_ps(some, _mm512_set1_ps(kLargest), largest);
        const __m512i number = _mm512_cvtps_epi32(_mm512_mul_ps(value, inverse));
        const __m512i digit = _mm512_srai_epi32(_mm512_slli_epi32(number, 24), 24);
        _mm_store_si128((__m128i*)(lower + c), _mm512_cvtepi32_epi8(number));
        _mm_store_si128((__m128i*)(upper + c), _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_sub_epi32(number, digit), 8)));
        _mm512_store_ps(steps + c, _mm512_mul_ps(largest, _mm512_set1_ps(1.f / kLargest)));
        _mm512_store_si512(sums + c, over_lane(number, [](__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }));
      }
      for (int j = 0; j < 16; ++j) {
        step.data[at + j] = steps[j * C::lane];
        sum.data[at + j] = float(sums[j * C::lane]);
        centre.data[at + j] = -(1 << (B - 1)) * sums[j * C::lane];
      }
      split(lower, low.data + (first + v) * C::columns);
      split(upper, high.data + (first + v) * C::columns);
    }
  }
};

// Scales come sixteen groups at a time into a register; for every vector of columns, where in it the group of each lane is.
template <int B>
struct Lanes {
  using C = Codes<B>;
  const int64_t group, groups;
  const int64_t chunk;    // vectors that see the same sixteen groups, which are of whole lanes
  Buffer<int32_t> lane;   // [vectors][16]

  Lanes(const PackedWeight& w, int64_t vectors)
      : group(w.groups == 1 ? vectors * C::columns : w.group), groups(w.groups), chunk(16 * group / C::columns),
        lane(vectors * 16) {
    for (int64_t v = 0; v < vectors; ++v)
      for (int64_t l = 0; l < 16; ++l)
        lane.data[v * 16 + l] = int32_t(std::min((v * C::columns + l * C::lane) / group, groups - 1) - first(v));
  }
  int64_t first(int64_t v) const { return std::min(v / chunk * 16, groups - 1); }  // where the register of `v` begins
};

// Numbers first … of a row of scales or zero points, sixteen at most.
inline __m512 load_groups(const void* data, Dtype dtype, int64_t row, int64_t first, int64_t groups) {
  const __mmask16 keep = __mmask16(low_words(std::min<int64_t>(groups - first, 16)));
  const int64_t at = row * groups + first;
  switch (dtype) {
    case BF16: {
      const __m256i half = _mm256_maskz_loadu_epi16(keep, static_cast<const uint16_t*>(data) + at);
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    case F16: return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(keep, static_cast<const uint16_t*>(data) + at));
    case U8: return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(keep, static_cast<const uint8_t*>(data) + at)));
    default: return _mm512_maskz_loadu_ps(keep, static_cast<const float*>(data) + at);
  }
}

// total[r][m] = row (row + r) of W · row m of x, not yet summed over the lanes.
template <int B, int M, bool ZERO>
void dot_rows(const PackedWeight& w, const Digits<B>& x, const Lanes<B>& lanes, const Spread<B>& spread, int64_t row,
              __m512 (&total)[kRows][M]) {
  using C = Codes<B>;
  constexpr int R = kRows;
  const int64_t vectors = x.vectors;
  const uint8_t* codes[R];
  int64_t at[R];
  for (int r = 0; r < R; ++r) {
    at[r] = std::min(row + r, w.n - 1);
    codes[r] = w.codes + at[r] * w.row_bytes;
    for (int m = 0; m < M; ++m) total[r][m] = _mm512_setzero_ps();
  }
  __m512 scale[R], zero[R];
  auto step = [&](int64_t v, int64_t ahead, __mmask64 mask, auto masked) __attribute__((always_inline)) {
    const __m512i lane = _mm512_loadu_si512(lanes.lane.data + v * 16);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const uint8_t* from = codes[r] + v * C::bytes;
      _mm_prefetch(reinterpret_cast<const char*>(from + ahead), _MM_HINT_T0);
      __m512i c[C::parts];
      unpack<B>(decltype(masked)::value ? _mm512_maskz_loadu_epi8(mask, from) : _mm512_loadu_si512(from), spread, c);
      const __m512 s = _mm512_permutexvar_ps(lane, scale[r]);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const int64_t place = m * vectors + v;
        __m512i lower = _mm512_load_si512(x.centre.data + place * 16), upper = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int p = 0; p < C::parts; ++p) {
          lower = _mm512_dpbusd_epi32(lower, c[p], _mm512_load_si512(x.low.data + place * C::columns + 64 * p));
          upper = _mm512_dpbusd_epi32(upper, c[p], _mm512_load_si512(x.high.data + place * C::columns + 64 * p));
        }
        __m512 product = _mm512_cvtepi32_ps(_mm512_add_epi32(lower, _mm512_slli_epi32(upper, 8)));
        if (ZERO)
          product = _mm512_fmadd_ps(_mm512_permutexvar_ps(lane, zero[r]), _mm512_load_ps(x.sum.data + place * 16), product);
        total[r][m] = _mm512_fmadd_ps(product, _mm512_mul_ps(s, _mm512_load_ps(x.step.data + place * 16)), total[r][m]);
      }
    }
  };
  // Loads of 64 bytes may reach into the next rows, not beyond the weight; what they find there meets zeros of x.
  const int64_t left = (w.n - std::min(row + R, w.n)) * w.row_bytes + w.row_bytes - 64;
  const int64_t safe = left < 0 ? 0 : std::min(vectors, left / C::bytes + 1);
  const int64_t near = std::clamp<int64_t>((w.row_bytes - kAhead) / C::bytes, 0, safe);
  for (int64_t v0 = 0; v0 < vectors; v0 += lanes.chunk) {
    const int64_t v1 = std::min(v0 + lanes.chunk, vectors), first = lanes.first(v0);
    for (int r = 0; r < R; ++r) {
      const int64_t of = w.per_tensor ? 0 : at[r];
      scale[r] = load_groups(w.scale, w.scale_dtype, of, first, w.groups);
      if (ZERO) zero[r] = _mm512_sub_ps(_mm512_set1_ps(float(1 << (B - 1))), load_groups(w.zero, U8, of, first, w.groups));
    }
    int64_t v = v0;
    for (; v < std::min(v1, near); ++v) step(v, kAhead, 0, std::false_type{});
    // What follows the end of these rows is the beginning of the next.
    for (; v < std::min(v1, safe); ++v) step(v, kAhead + (R - 1) * w.row_bytes, 0, std::false_type{});
    for (; v < v1; ++v) {
      const int64_t rest = std::min(C::bytes, w.row_bytes - v * C::bytes);
      step(v, 0, rest >= 64 ? ~0ull : (1ull << rest) - 1, std::true_type{});
    }
  }
}

// Sums over the lanes of sixteen vectors, in their order.
inline __m512 sum_each(const __m512 (&v)[16]) {
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i)
    a[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
  for (int i = 0; i < 4; ++i) {
    const __m512d lo = _mm512_castps_pd(a[2 * i]), hi = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi)), _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi)));
  }
  for (int i = 0; i < 2; ++i)
    c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88), _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
}

// Rows row … row + 15 of one output, of which `count` exist.
inline void store_rows(const Output& y, int64_t m, int64_t row, int64_t count, __m512 v) {
  const __mmask16 keep = __mmask16(low_words(count));
  const int64_t at = m * y.n + row;
  if (y.bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(keep, y.bias + row));
  if (y.residual) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(keep, y.residual + at));
  switch (y.dtype) {
    case BF16: return _mm256_mask_storeu_epi16(static_cast<uint16_t*>(y.data) + at, keep, (__m256i)_mm512_cvtneps_pbh(v));
    case F16: return _mm256_mask_storeu_epi16(static_cast<uint16_t*>(y.data) + at, keep, _mm512_cvtps_ph(v, 0));
    default: return _mm512_mask_storeu_ps(static_cast<float*>(y.data) + at, keep, v);
  }
}

template <int B, int M>
void rows_of(const Input& x, const Product* products, int64_t count, const Parallel& parallel) {
  const int64_t vectors = ceil_div(x.k, Codes<B>::columns);
  const Digits<B> digits(x, vectors);
  const Spread<B> spread;
  int64_t blocks = 0;
  for (int64_t i = 0; i < count; ++i) blocks += ceil_div(products[i].w.n, 16);
  parallel(blocks, [&](int64_t b0, int64_t b1) {
    int64_t from = 0;
    for (int64_t i = 0; i < count; ++i) {  // each weight has its share of the blocks
      const auto& [w, y] = products[i];
      const int64_t its = ceil_div(w.n, 16), first = std::max(b0 - from, int64_t(0)), last = std::min(b1 - from, its);
      from += its;
      if (first >= last) continue;
      const Lanes<B> lanes(w, vectors);
      const auto kernel = w.zero ? dot_rows<B, M, true> : dot_rows<B, M, false>;
      for (int64_t row = first * 16; row < std::min(last * 16, w.n); row += 16) {
        __m512 total[M][16], four[kRows][M];
        for (int part = 0; part < 16; part += kRows) {
          if (row + part < w.n) kernel(w, digits, lanes, spread, row + part, four);
          for (int r = 0; r < kRows; ++r)
            for (int m = 0; m < M; ++m) total[m][part + r] = four[r][m];
        }
        for (int m = 0; m < M; ++m) store_rows(y, m, row, std::min<int64_t>(16, w.n - row), sum_each(total[m]));
      }
    }
  });
}

template <int B>
bool linear(const Input& x, const Product* products, int64_t count, const Parallel& parallel) {
  for (int64_t i = 0; i < count; ++i)
    if (products[i].w.groups > 1 && products[i].w.group % Codes<B>::lane) return false;
  switch (x.rows) {
    case 1: return rows_of<B, 1>(x, products, count, parallel), true;
    case 2: return rows_of<B, 2>(x, products, count, parallel), true;
    case 3: return rows_of<B, 3>(x, products, count, parallel), true;
    case 4: return rows_of<B, 4>(x, products, count, parallel), true;
    default: return false;
  }
}

}  // namespace

bool packed_integers(const Input& x, const Product* products, int64_t count, const Parallel& parallel) {
  const PackedWeight& w = products[0].w;
  for (int64_t i = 0; i < count; ++i)
    if (products[i].w.bits != w.bits || products[i].w.table) return false;
  if (x.dtype != BF16) return false;
  switch (w.bits) {
    case 2: return linear<2>(x, products, count, parallel);
    case 3: return linear<3>(x, products, count, parallel);
    case 4: return linear<4>(x, products, count, parallel);
    case 5: return linear<5>(x, products, count, parallel);
    case 6: return linear<6>(x, products, count, parallel);
    case 7: return linear<7>(x, products, count, parallel);
    case 8: return linear<8>(x, products, count, parallel);
    default: return false;
  }
}

}  // namespace ck::avx512
