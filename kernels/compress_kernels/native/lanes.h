// x in fixed point (fixed_point.h) for weights of which a lane holds a row: digits of four columns, broadcast to every lane.
#pragma once

#include "fixed_point.h"

namespace ck::CK_ISA {

// What is unpacked together: `words` words of a row hold the codes of `parts` times four columns.
template <int B>
struct Unit {
  static constexpr int words = B == 3 ? 3 : 1;
  static constexpr int parts = words * 8 / B;
  static constexpr int64_t columns = 4 * parts;
  static constexpr int64_t bytes = 64 * words;  // of sixteen rows
};

// x in fixed point, the upper and the lower digits of four columns beside each other.
template <int B>
struct Columns {
  using U = Unit<B>;
  const int64_t rows, span, units, spans;
  int32_t* digits;    // [rows][units][parts][2]
  int32_t* sum;       // [rows][spans]
  float* step;        // [rows][spans]

  Columns(const Input& x, int64_t span_, const Parallel& parallel)
      : rows(x.rows), span(span_), units(x.k / U::columns), spans(ceil_div(x.k, span)),
        room_(x.rows * (units * U::parts * 2 + 2 * spans) * 4 + 4 * kSpan) {
    digits = reinterpret_cast<int32_t*>(room_.data), sum = digits + x.rows * units * U::parts * 2;
    step = reinterpret_cast<float*>(sum + x.rows * spans);
    const auto round = [&](int64_t m0, int64_t m1) {
      for (int64_t m = m0; m < m1; ++m) round_row(x, m);
    };
    x.rows > kFewRows ? parallel(x.rows, round) : round(0, x.rows);  // a few are rounded before another thread has woken up
  }
  int32_t* row(int64_t m) const { return digits + m * units * U::parts * 2; }

 private:
  Buffer<uint8_t> room_;

  void round_row(const Input& x, int64_t m) {
    alignas(64) int8_t lower[2 * kSpan], upper[2 * kSpan];
    for (int64_t s = 0; s < spans; ++s) {
      const int64_t at = s * span, count = std::min(span, x.k - at);
      sum[m * spans + s] = round_span(x, m, at, count, lower, upper, step[m * spans + s]);
      join(lower, upper, count, row(m) + at / 2);
    }
  }

  void join(const int8_t* lower, const int8_t* upper, int64_t count, int32_t* out) const {
    const __m128i order = B == 4   ? _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                          : B == 2 ? _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)
                                   : _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t c = 0; c < count; c += 16) {
      const __m128i low = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i*)(lower + c)), order);
      const __m128i high = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i*)(upper + c)), order);
      const __m256i both = _mm256_set_m128i(_mm_unpackhi_epi32(high, low), _mm_unpacklo_epi32(high, low));
      _mm256_mask_storeu_epi32(out + c / 2, __mmask8(low_words((count - c) / 2)), both);
    }
  }
};

}  // namespace ck::CK_ISA
