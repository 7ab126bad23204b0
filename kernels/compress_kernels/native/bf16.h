// Everything that uses bf16 instructions, and the same for CPUs that lack them: products of pairs as two of fp32, and rounding to
// nearest even, where NaN stays NaN.
#pragma once

#include <immintrin.h>

namespace ck::CK_ISA {

// A pair of bf16 in each lane: its numbers as fp32.
inline __m512 first_of_pairs(__m512i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); }
inline __m512 second_of_pairs(__m512i v) { return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(int(0xffff0000u)))); }

#ifdef __AVX512BF16__

constexpr bool kMultipliesBf16 = true;

// acc + the products of two pairs of bf16 in each lane.
inline __m512 dot(__m512 acc, __m512i a, __m512i b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }

inline __m128i to_bf16(__m256 v) { return (__m128i)_mm256_cvtneps_pbh(v); }
inline __m256i to_bf16(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
inline __m512i to_bf16(__m512 first, __m512 second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }

#else

constexpr bool kMultipliesBf16 = false;

inline __m512 dot(__m512 acc, __m512i a, __m512i b) {
  acc = _mm512_fmadd_ps(first_of_pairs(a), first_of_pairs(b), acc);
  return _mm512_fmadd_ps(second_of_pairs(a), second_of_pairs(b), acc);
}

// Numbers whose upper halves are the bf16.
inline __m512i rounded(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return _mm512_mask_or_epi32(up, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), bits, _mm512_set1_epi32(0x400000));
}

inline __m256i to_bf16(__m512 v) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(v), 16)); }
inline __m128i to_bf16(__m256 v) { return _mm256_castsi256_si128(to_bf16(_mm512_castps256_ps512(v))); }
inline __m512i to_bf16(__m512 first, __m512 second) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(to_bf16(first)), to_bf16(second), 1);
}

#endif

}  // namespace ck::CK_ISA
