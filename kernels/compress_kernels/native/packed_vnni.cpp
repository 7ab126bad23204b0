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

struct Lanes {
  std::vector<int32_t> first;  // [vectors]: group of the first column
  std::vector<int32_t> lane;   // [vectors][16]: group of each lane, counted from there
  bool alike = true;           // no vector sees two groups

  template <int B>
  static Lanes of(const PackedWeight& w, int64_t vectors) {
    using C = Codes<B>;
    Lanes lanes{std::vector<int32_t>(vectors), std::vector<int32_t>(vectors * 16)};
    const int64_t group = w.groups == 1 ? vectors * C::columns : w.group;
    for (int64_t v = 0; v < vectors; ++v) {
      lanes.first[v] = int32_t(std::min(v * C::columns / group, w.groups - 1));
      for (int64_t l = 0; l < 16; ++l) {
        lanes.lane[v * 16 + l] = int32_t(std::min((v * C::columns + l * C::lane) / group, w.groups - 1) - lanes.first[v]);
        lanes.alike &= lanes.lane[v * 16 + l] == 0;
      }
    }
    return lanes;
  }
};

// result[r][m] = row (row + r) of W · row m of x.
template <int B, int M, bool ALIKE, bool ZERO>
void dot_rows(const PackedWeight& w, const Digits<B>& x, const Lanes& lanes, const Spread<B>& spread, int64_t row, float* buffer,
              float* result) {
  using C = Codes<B>;
  constexpr int R = kRows;
  const int64_t padded = w.groups + 16, vectors = x.vectors;
  const uint8_t* codes[R];
  const float* scale[R];
  for (int r = 0; r < R; ++r) {
    const int64_t at = std::min(row + r, w.n - 1);
    codes[r] = w.codes + at * w.row_bytes;
    float* s = buffer + 2 * r * padded;
    scale[r] = s;
    load_group_row(w.scale, w.scale_dtype, w.per_tensor ? 0 : at, w.groups, s);
    if (!ZERO) continue;
    load_group_row(w.zero, U8, w.per_tensor ? 0 : at, w.groups, s + padded);
    for (int64_t g = 0; g < w.groups; ++g) s[padded + g] = float(1 << (B - 1)) - s[padded + g];
  }
  __m512 total[R][M];
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) total[r][m] = _mm512_setzero_ps();

  int64_t ahead = kAhead;
  auto step = [&](int64_t v, __mmask64 mask, auto masked) __attribute__((always_inline)) {
    const int64_t g = lanes.first[v];
    const __m512i lane = ALIKE ? _mm512_setzero_si512() : _mm512_loadu_si512(lanes.lane.data() + v * 16);
    const auto of_group = [&](const float* s) __attribute__((always_inline)) {
      return ALIKE ? _mm512_set1_ps(s[g]) : _mm512_permutexvar_ps(lane, _mm512_loadu_ps(s + g));
    };
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const uint8_t* at = codes[r] + v * C::bytes;
      _mm_prefetch(reinterpret_cast<const char*>(at + ahead), _MM_HINT_T0);
      __m512i c[C::parts];
      unpack<B>(decltype(masked)::value ? _mm512_maskz_loadu_epi8(mask, at) : _mm512_loadu_si512(at), spread, c);
      const __m512 s = of_group(scale[r]);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const int64_t place = m * vectors + v;
        __m512i lower = _mm512_loadu_si512(x.centre.data + place * 16), upper = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int p = 0; p < C::parts; ++p) {
          lower = _mm512_dpbusd_epi32(lower, c[p], _mm512_loadu_si512(x.low.data + place * C::columns + 64 * p));
          upper = _mm512_dpbusd_epi32(upper, c[p], _mm512_loadu_si512(x.high.data + place * C::columns + 64 * p));
        }
        __m512 product = _mm512_cvtepi32_ps(_mm512_add_epi32(lower, _mm512_slli_epi32(upper, 8)));
        if (ZERO)
          product = _mm512_fmadd_ps(of_group(scale[r] + padded), _mm512_loadu_ps(x.sum.data + place * 16), product);
        total[r][m] = _mm512_fmadd_ps(product, _mm512_mul_ps(s, _mm512_loadu_ps(x.step.data + place * 16)), total[r][m]);
      }
    }
  };
  // Loads of 64 bytes may reach into the next rows, not beyond the weight; what they find there meets zeros of x.
  const int64_t left = (w.n - std::min(row + R, w.n)) * w.row_bytes + w.row_bytes - 64;
  const int64_t safe = left < 0 ? 0 : std::min(vectors, left / C::bytes + 1);
  int64_t v = 0;
  for (const int64_t near = std::clamp<int64_t>((w.row_bytes - kAhead) / C::bytes, 0, safe); v < near; ++v)
    step(v, 0, std::false_type{});
  ahead = kAhead + (R - 1) * w.row_bytes;
  for (; v < safe; ++v) step(v, 0, std::false_type{});
  for (; v < vectors; ++v) {
    const int64_t rest = std::min(C::bytes, w.row_bytes - v * C::bytes);
    step(v, rest >= 64 ? ~0ull : (1ull << rest) - 1, std::true_type{});
  }
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) result[r * M + m] = _mm512_reduce_add_ps(total[r][m]);
}

template <int B, int M>
void rows_of(const Input& x, const PackedWeight& w, const Output& y, const Parallel& parallel) {
  const int64_t vectors = ceil_div(w.k, Codes<B>::columns);
  const Digits<B> digits(x, vectors);
  const Lanes lanes = Lanes::of<B>(w, vectors);
  const Spread<B> spread;
  const auto kernel = w.zero ? (lanes.alike ? dot_rows<B, M, true, true> : dot_rows<B, M, false, true>)
                             : (lanes.alike ? dot_rows<B, M, true, false> : dot_rows<B, M, false, false>);
  parallel(ceil_div(w.n, kRows), [&](int64_t b0, int64_t b1) {
    Buffer<float> buffer(2 * kRows * (w.groups + 16));
    float result[kRows * M];
    for (int64_t b = b0; b < b1; ++b) {
      kernel(w, digits, lanes, spread, b * kRows, buffer.data, result);
      for (int64_t r = 0; r < kRows && b * kRows + r < w.n; ++r)
        for (int64_t m = 0; m < M; ++m) store_scalar(y, m, b * kRows + r, result[r * M + m]);
    }
  });
}

template <int B>
bool linear(const Input& x, const PackedWeight& w, const Output& y, const Parallel& parallel) {
  if (w.groups > 1 && w.group % Codes<B>::lane) return false;
  switch (x.rows) {
    case 1: return rows_of<B, 1>(x, w, y, parallel), true;
    case 2: return rows_of<B, 2>(x, w, y, parallel), true;
    case 3: return rows_of<B, 3>(x, w, y, parallel), true;
    case 4: return rows_of<B, 4>(x, w, y, parallel), true;
    default: return false;
  }
}

}  // namespace

bool packed_integers(const Input& x, const PackedWeight& w, const Output& y, const Parallel& parallel) {
  if (w.table || x.dtype != BF16) return false;
  switch (w.bits) {
    case 2: return linear<2>(x, w, y, parallel);
    case 3: return linear<3>(x, w, y, parallel);
    case 4: return linear<4>(x, w, y, parallel);
    case 5: return linear<5>(x, w, y, parallel);
    case 6: return linear<6>(x, w, y, parallel);
    case 7: return linear<7>(x, w, y, parallel);
    case 8: return linear<8>(x, w, y, parallel);
    default: return false;
  }
}

}  // namespace ck::avx512
