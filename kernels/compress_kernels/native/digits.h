// x as bytes: every 32 columns of a row of x are rounded to fixed point under a scale of their own and written as digits.
//
// One digit is int8 (an error of max|x| / 254 in each of the 32), two are 16 bits (max|x| / 65000, less than bf16 loses of the
// largest), three are 24 (what fp32 holds). Products of digits with codes are exact in int32. With VNNI the base is 256 and a
// digit may be −128; without it the base is 255 and digits lie in −127 … 127, so that their signs can be changed.
#pragma once

#include <algorithm>

#include "scalars.h"

namespace ck::CK_ISA {

#ifdef __AVX512VNNI__
constexpr bool kVnni = true;
constexpr int kBase = 256;
#else
constexpr bool kVnni = false;
constexpr int kBase = 255;
#endif

// In which order the codes of 32 columns come out of their bytes: of the columns in their own order first a shuffle inside each
// half, then a permutation of the eight words.
struct ByteOrder {
  alignas(32) uint8_t shuffle[32];
  alignas(32) uint32_t words[8];
  bool natural = false;
};

struct Digits {
  int64_t rows, blocks;   // of 32 columns
  int terms, parts;       // digits of a number; sums in a block: 1, or 2 where there is a step for every 16 columns
  Buffer<int8_t> codes;   // [rows][blocks][terms][32], the highest digits first
  Buffer<float> scale;    // [rows][blocks]: of the lowest digit
  Buffer<float> sums;     // [rows][padded(blocks · parts)]: what the digits say that x is, added up
  int64_t sum_stride;

  Digits(const Input& x, int terms_, int parts_, const ByteOrder& order, const Parallel& parallel)
      : rows(x.rows), blocks(ceil_div(x.k, 32)), terms(terms_), parts(parts_), codes(rows * blocks * 32 * terms),
        scale(rows * blocks), sums(rows * (ceil_div(blocks * parts, 8) * 8)), sum_stride(ceil_div(blocks * parts, 8) * 8) {
    parallel(rows, [&](int64_t m0, int64_t m1) {
      for (int64_t m = m0; m < m1; ++m) {
        for (int64_t b = 0; b < blocks; ++b) round_block(x, m, b, order);
        for (int64_t s = blocks * parts; s < sum_stride; ++s) sums.data[m * sum_stride + s] = 0.f;
      }
    });
  }

 private:
  static __m256 load8(const Input& x, int64_t at) {
    if (x.dtype == F32) return _mm256_loadu_ps(static_cast<const float*>(x.data) + at);
    const __m128i half = _mm_loadu_si128((const __m128i*)(static_cast<const uint16_t*>(x.data) + at));
    if (x.dtype == F16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }

  static float largest_of(const __m256 (&v)[4]) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256i most = _mm256_setzero_si256();  // magnitudes compare as integers, and NaN is the largest
    for (int i = 0; i < 4; ++i) most = _mm256_max_epi32(most, _mm256_castps_si256(_mm256_and_ps(v[i], magnitude)));
    alignas(32) int32_t lanes[8];
    _mm256_store_si256((__m256i*)lanes, most);
    const int32_t bits = *std::max_element(lanes, lanes + 8);
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
  }

  static int32_t total(__m256i v) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
  }

  // The lowest digit of q, which is left without it and one digit shorter.
  static __m256i take_digit(__m256i& q) {
    __m256i rest;
    if constexpr (kVnni)
      rest = _mm256_srai_epi32(_mm256_add_epi32(q, _mm256_set1_epi32(128)), 8);
    else  // fp32 holds q, and no quotient by an odd number lies half way between two integers
      rest = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(q), _mm256_set1_ps(1.f / kBase)));
    const __m256i digit = _mm256_sub_epi32(q, _mm256_mullo_epi32(rest, _mm256_set1_epi32(kBase)));
    q = rest;
    return digit;
  }

  static __m256i pack(const __m256i (&v)[4], const ByteOrder& order) {
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    const __m256i natural = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    if (order.natural) return natural;
    const __m256i inside = _mm256_shuffle_epi8(natural, _mm256_load_si256((const __m256i*)order.shuffle));
    return _mm256_permutevar8x32_epi32(inside, _mm256_load_si256((const __m256i*)order.words));
  }

  void round_block(const Input& x, int64_t m, int64_t b, const ByteOrder& order) {
    // The largest numbers whose digits are 127 at most; of three digits some less, for the product may be rounded up.
    static constexpr float kTop[4] = {0, 127, 127 * kBase + 127, 127 * kBase * kBase + 126 * kBase};
    const int64_t left = std::min<int64_t>(32, x.k - 32 * b);
    __m256 v[4];
    if (left == 32) {
      for (int i = 0; i < 4; ++i) v[i] = load8(x, m * x.k + 32 * b + 8 * i);
    } else {
      alignas(32) float tail[32] = {};
      for (int64_t i = 0; i < left; ++i) tail[i] = load_scalar(x.data, x.dtype, m * x.k + 32 * b + i);
      for (int i = 0; i < 4; ++i) v[i] = _mm256_load_ps(tail + 8 * i);
    }
    const float largest = largest_of(v), top = kTop[terms];
    const bool plain = largest > 1e-30f && largest <= 3.4028235e38f;
    // Infinity and NaN stay visible; what is smaller than 1e-30 is taken for zero.
    const float step = plain ? largest / top : largest <= 1e-30f ? 0.f : std::numeric_limits<float>::quiet_NaN();
    const __m256 by = _mm256_set1_ps(plain ? top / largest : 0.f);
    __m256i q[4];
    for (int i = 0; i < 4; ++i) q[i] = plain ? _mm256_cvtps_epi32(_mm256_mul_ps(v[i], by)) : _mm256_setzero_si256();
    scale.data[m * blocks + b] = step;
    int8_t* out = codes.data + (m * blocks + b) * 32 * terms;
    const __m256i said[2] = {_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3])};
    for (int t = terms - 1; t >= 0; --t) {
      __m256i digit[4];
      for (int i = 0; i < 4; ++i) digit[i] = take_digit(q[i]);
      _mm256_storeu_si256((__m256i*)(out + 32 * t), pack(digit, order));
    }
    float* sum = sums.data + m * sum_stride + b * parts;
    const int32_t first = total(said[0]), second = total(said[1]);
    if (parts == 1) sum[0] = step * float(first + second);
    else sum[0] = step * float(first), sum[1] = step * float(second);
  }
};

}  // namespace ck::CK_ISA
