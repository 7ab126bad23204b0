// x of a few rows in fixed point for products in integers: two signed bytes for each column (16 bits), the step chosen for every
// span of columns by itself, 128 at most, so that what is lost is far below a bf16's own rounding.
//
// Sums of a lane are exact in int32. A span lies in one group of every weight, so that its step and its scale are one factor; what
// codes owe for not being centred is told once for sixteen spans.
#pragma once

#include <numeric>

#include "gemm.h"

namespace ck::CK_ISA {

constexpr int64_t kAhead = 2048;   // bytes of a row that are asked for before they are used
constexpr int64_t kSpan = 128;     // columns that share a step, at most
constexpr float kLargest = 32512;  // 127 · 256: the largest fixed-point number whose upper byte is signed
constexpr float kSmallest = 1e-30f;  // spans of smaller numbers are zero

// How codes of B bits come out of a vector of bytes.
template <int B>
struct Codes {
  static constexpr bool whole = B == 2 || B == 4 || B == 8;        // codes do not cross bytes
  static constexpr int parts = whole ? 8 / B : B == 3 ? 2 : 1;     // vectors of codes that one load gives
  static constexpr int64_t columns = 64 * parts;
  static constexpr int64_t bytes = columns * B / 8;
  static constexpr int lane = 4 * parts;                           // columns that share a lane
};

// The columns of a span: as many whole lanes as the group of each weight is a multiple of (`groups`: their greatest common divisor, 0
// where none has groups). 0: a lane crosses groups.
inline int64_t span_of(int64_t groups, int64_t lane) {
  if (groups % lane) return 0;
  for (int64_t span = kSpan; span > lane; span -= lane)
    if (groups % span == 0) return span;
  return lane;
}

// Sixteen columns of row m of x from `at` on as fp32, `count` of them at most, zeros beyond x.
inline __m512 load_columns(const Input& x, int64_t m, int64_t at, int64_t count) {
  const __mmask16 keep = __mmask16(low_words(std::min(count, x.k - at)) & 0xffff);
  const auto* from = static_cast<const uint16_t*>(x.data) + m * x.k + at;
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(keep, from)), 16));
}

// Columns at … at + count of row m of x as two digits each, written in whole vectors of sixteen; returns the sum of the numbers.
// UNSIGNED: of the numbers plus 32768, as bytes without signs.
template <bool UNSIGNED = false>
inline int32_t round_span(const Input& x, int64_t m, int64_t at, int64_t count, int8_t* lower, int8_t* upper, float& step) {
  // As integers, so that infinity and NaN win: the step of their span, and with it the result, is not finite.
  __m512i most = _mm512_setzero_si512(), total = most;
  for (int64_t c = 0; c < count; c += 16)
    most = _mm512_max_epi32(most, _mm512_castps_si512(_mm512_abs_ps(load_columns(x, m, at + c, count - c))));
  const int32_t bits = _mm512_reduce_max_epi32(most);
  float largest;
  std::memcpy(&largest, &bits, 4);
  const __m512 inverse = _mm512_set1_ps(largest > kSmallest ? kLargest / largest : 0.f);
  for (int64_t c = 0; c < count; c += 16) {
    const __m512i number = _mm512_cvtps_epi32(_mm512_mul_ps(load_columns(x, m, at + c, count - c), inverse));
    const __m512i digit = _mm512_srai_epi32(_mm512_slli_epi32(number, 24), 24);
    const __m512i rest = UNSIGNED ? _mm512_add_epi32(number, _mm512_set1_epi32(32768)) : _mm512_sub_epi32(number, digit);
    _mm_storeu_si128((__m128i*)(lower + c), _mm512_cvtepi32_epi8(number));
    _mm_storeu_si128((__m128i*)(upper + c), _mm512_cvtepi32_epi8(_mm512_srai_epi32(rest, 8)));
    total = _mm512_add_epi32(total, number);
  }
  step = largest / kLargest;
  return _mm512_reduce_add_epi32(total);
}

// x in fixed point: digits in the order of the codes, the step of each span, and the sum of its numbers.
template <int B>
struct Digits {
  using C = Codes<B>;
  const int64_t span, vectors;
  const int64_t turn;     // vectors of sixteen spans
  const int64_t spans;    // a multiple of sixteen
  int8_t *low, *high;     // [rows][vectors][parts][64]
  float *step, *sum;      // [rows][spans]
  int32_t* lane;          // [turn][16]: which of the sixteen spans

  Digits(const Input& x, int64_t span_)
      : span(span_), vectors(ceil_div(x.k, C::columns)), turn(span / C::lane), spans(ceil_div(vectors, turn) * 16),
        room_(2 * (x.rows + 1) * columns() + 4 * kSpan + 4 * (2 * x.rows * spans + 16 * turn)) {
    step = reinterpret_cast<float*>(room_.data), sum = step + x.rows * spans;
    lane = reinterpret_cast<int32_t*>(sum + x.rows * spans);
    low = reinterpret_cast<int8_t*>(lane + 16 * turn), high = low + x.rows * columns();
    int8_t *lower = high + x.rows * columns(), *upper = lower + columns() + 2 * kSpan;
    for (int64_t i = 0; i < turn * 16; ++i) lane[i] = int32_t(i / turn);
    for (int64_t m = 0; m < x.rows; ++m) {
      for (int64_t s = 0; s < spans; ++s) {
        const int64_t at = s * span;
        float &size = step[m * spans + s] = 0.f, &total = sum[m * spans + s] = 0.f;
        if (at < columns()) total = float(round_span(x, m, at, span, lower + at, upper + at, size));
      }
      split(lower, low + m * columns());
      split(upper, high + m * columns());
    }
  }

 private:
  Buffer<uint8_t> room_;  // all of them

  int64_t columns() const { return vectors * C::columns; }

  // Bytes of neighbouring columns to the 64 of each part.
  void split(const int8_t* natural, int8_t* parts) const {
    for (int64_t c = 0; c < columns(); c += 64) {
      const __m512i v = _mm512_loadu_si512(natural + c);
#pragma GCC unroll 4
      for (int p = 0; p < C::parts; ++p) {
        int8_t* to = parts + c / C::columns * C::columns + 64 * p + c % C::columns / C::parts;
        if constexpr (C::parts == 1) _mm512_storeu_si512(to, v);
        if constexpr (C::parts == 2 && C::whole) _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi16_epi8(p ? _mm512_srli_epi16(v, 8) : v));
        if constexpr (C::parts == 2 && !C::whole) _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi64_epi32(p ? _mm512_srli_epi64(v, 32) : v));
        if constexpr (C::parts == 4) _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(_mm512_srli_epi32(v, 8 * p)));
      }
    }
  }
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

// Scales and zero points of sixteen spans at once.
template <typename Weight>
struct Groups {
  const Weight& w;
  std::vector<int64_t> first;  // [turns]: the group of the first of the sixteen
  std::vector<int32_t> place;  // [turns][16]: that of each, counted from there; empty: spans are groups
  Groups(const Weight& weight, int64_t span, int64_t turns) : w(weight), first(turns) {
    const int64_t spans = w.groups == 1 ? turns * 16 : w.group / span;  // of a group
    for (int64_t t = 0; t < turns; ++t) first[t] = std::min(t * 16 / spans, w.groups - 1);
    if (spans == 1) return;
    place.resize(turns * 16);
    for (int64_t i = 0; i < turns * 16; ++i) place[i] = int32_t(i / spans - first[i / 16]);
  }
  __m512 load(const void* data, Dtype dtype, int64_t row, int64_t turn) const {
    const __m512 v = load_groups(data, dtype, w.per_tensor ? 0 : row, first[turn], w.groups);
    return place.empty() ? v : _mm512_permutexvar_ps(_mm512_loadu_si512(place.data() + turn * 16), v);
  }
};

// Scales of rows 16 · block … of an interleaved weight.
template <typename Weight>
inline __m512 load_sixteen(const Weight& w, int64_t block, int64_t group) {
  if (w.per_tensor) return _mm512_set1_ps(load_scalar(w.scale, w.scale_dtype, group));
  const int64_t at = (block * w.groups + group) * 16;
  const auto* half = static_cast<const __m256i*>(w.scale) + at / 16;
  switch (w.scale_dtype) {
    case BF16: return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(half)), 16));
    case F16: return _mm512_cvtph_ps(_mm256_loadu_si256(half));
    default: return _mm512_loadu_ps(static_cast<const float*>(w.scale) + at);
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

constexpr int64_t kFewRows = 8;      // of x; with more, tiles of bf16 are faster where the CPU multiplies them
constexpr int64_t kCached = 1 << 19;  // numbers of x whose digits stay in the second cache

// multiply(x, products) for as many rows of x at once as stay in the second cache.
template <typename P, typename Multiply>
void by_rows(const Input& x, const P* products, int64_t count, const Multiply& multiply) {
  const int64_t together = std::max<int64_t>(kCached / std::max<int64_t>(x.k, 1) / 8 * 8, 8);
  std::vector<P> part(products, products + count);
  for (int64_t m0 = 0; m0 < x.rows; m0 += together) {
    for (int64_t i = 0; i < count; ++i) part[i].y = rows_of(products[i].y, m0);
    multiply(rows_of(x, m0, std::min(m0 + together, x.rows)), part.data());
  }
}

// body(product, block) for all blocks of `rows` rows of several weights, shared out together.
template <typename P, typename Body>
void share_blocks(const P* products, int64_t count, int64_t rows, const Parallel& parallel, const Body& body) {
  int64_t blocks = 0;
  for (int64_t i = 0; i < count; ++i) blocks += ceil_div(products[i].w.n, rows);
  parallel(blocks, [&](int64_t b0, int64_t b1) {
    int64_t from = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t its = ceil_div(products[i].w.n, rows), last = std::min(b1 - from, its);
      for (int64_t b = std::max(b0 - from, int64_t(0)); b < last; ++b) body(products[i], b);
      from += its;
    }
  });
}

// Rows row … row + 15 of one output, of which `count` exist.
inline void store_rows(const Output& y, int64_t m, int64_t row, int64_t count, __m512 v) {
  const __mmask16 keep = __mmask16(low_words(count));
  const int64_t at = m * y.n + row;
  if (y.bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(keep, y.bias + row));
  if (y.residual) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(keep, y.residual + at));
  switch (y.dtype) {
    case BF16: return _mm256_mask_storeu_epi16(static_cast<uint16_t*>(y.data) + at, keep, to_bf16(v));
    case F16: return _mm256_mask_storeu_epi16(static_cast<uint16_t*>(y.data) + at, keep, _mm512_cvtps_ph(v, 0));
    default: return _mm512_mask_storeu_ps(static_cast<float*>(y.data) + at, keep, v);
  }
}

}  // namespace ck::CK_ISA
