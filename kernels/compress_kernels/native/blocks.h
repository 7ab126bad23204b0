// The block types of ggml for vectors of 256 bits: codes in the order of the columns, 32 in a vector.
#pragma once

#include "codes.h"
#include "ggml.h"

namespace ck::CK_ISA {

inline __m256i load32(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline __m256i low_bits(__m256i v, int bits) { return _mm256_and_si256(v, _mm256_set1_epi8(char((1 << bits) - 1))); }

// Sixteen bytes as 32 codes: the low halves, then the high halves.
inline __m256i split_nibbles(const uint8_t* p) {
  const __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
  return low_bits(_mm256_srlv_epi32(v, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)), 4);
}

// 32 bits as the values 16 and 0.
inline __m256i fifth_bits(const uint8_t* p) {
  uint32_t bits;
  std::memcpy(&bits, p, 4);
  const __m256i spread = _mm256_shuffle_epi8(
      _mm256_set1_epi32(int(bits)),
      _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
  const __m256i each = _mm256_set1_epi64x(int64_t(0x8040201008040201ull));
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, each), each), _mm256_set1_epi8(16));
}

inline __m256i table_of(const int8_t* values) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)values));
}

// Codes of columns 32 · piece … of a block.
template <int Header, int Zero>
inline __m256i piece_of(Simple<Header, Zero>, const uint8_t* p, int) { return split_nibbles(p + Header); }

template <typename Base, int Bits>
inline __m256i piece_of(WithFifthBit<Base, Bits>, const uint8_t* p, int) {
  return _mm256_or_si256(split_nibbles(p + Base::kNibbles), fifth_bits(p + Bits));
}

inline __m256i piece_of(Q8_0, const uint8_t* p, int) { return load32(p + 2); }

inline __m256i piece_of(Q2_K, const uint8_t* p, int piece) {
  return low_bits(_mm256_srli_epi16(load32(p + 16 + piece / 4 * 32), piece % 4 * 2), 2);
}

inline __m256i piece_of(Q3_K, const uint8_t* p, int piece) {
  const __m256i low = low_bits(_mm256_srli_epi16(load32(p + 32 + piece / 4 * 32), piece % 4 * 2), 2);
  const __m256i high = low_bits(_mm256_srli_epi16(load32(p), piece), 1);
  return _mm256_or_si256(low, _mm256_slli_epi16(high, 2));
}

inline __m256i piece_of(Q4_K, const uint8_t* p, int piece) {
  return low_bits(_mm256_srli_epi16(load32(p + 16 + piece / 2 * 32), piece % 2 * 4), 4);
}

inline __m256i piece_of(Q5_K, const uint8_t* p, int piece) {
  const __m256i low = low_bits(_mm256_srli_epi16(load32(p + 48 + piece / 2 * 32), piece % 2 * 4), 4);
  const __m256i high = low_bits(_mm256_srli_epi16(load32(p + 16), piece), 1);
  return _mm256_or_si256(low, _mm256_slli_epi16(high, 4));
}

inline __m256i piece_of(Q6_K, const uint8_t* p, int piece) {
  const int half = piece / 4, part = piece % 4;
  const __m256i low = low_bits(_mm256_srli_epi16(load32(p + 64 * half + part % 2 * 32), part / 2 * 4), 4);
  const __m256i high = low_bits(_mm256_srli_epi16(load32(p + 128 + 32 * half), 2 * part), 2);
  return _mm256_or_si256(low, _mm256_slli_epi16(high, 4));
}

template <typename T>
  requires requires { T::kTable; }
inline __m256i piece_of(T, const uint8_t* p, int piece) {
  return _mm256_shuffle_epi8(table_of(T::kTable), split_nibbles(T::nibbles(p, piece)));
}

// Steps and low ends of a block; of the K-quants all sub-blocks at once. What they are ggml.h says.
template <typename T>
inline void steps_of(T, const uint8_t* p, float* step, float* low) { T::steps(p, step, low); }

inline __m256 eight_bytes(uint64_t bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(int64_t(bytes)))); }
inline uint64_t word_pair(uint32_t low, uint32_t high) { return uint64_t(high) << 32 | low; }

inline void steps_of(Q2_K, const uint8_t* p, float* step, float* low) {
  const __m256 d = _mm256_set1_ps(half_at(p + 80)), m = _mm256_set1_ps(-half_at(p + 82));
  for (int g = 0; g < 16; g += 8) {
    uint64_t both;
    std::memcpy(&both, p + g, 8);
    _mm256_storeu_ps(step + g, _mm256_mul_ps(d, eight_bytes(both & 0x0f0f0f0f0f0f0f0full)));
    _mm256_storeu_ps(low + g, _mm256_mul_ps(m, eight_bytes(both >> 4 & 0x0f0f0f0f0f0f0f0full)));
  }
}

inline void steps_of(Q3_K, const uint8_t* p, float* step, float* low) {
  uint32_t s[3];
  std::memcpy(s, p + 96, 12);
  constexpr uint32_t four = 0x0f0f0f0f, high = 0x30303030;
  const uint64_t pairs[2] = {word_pair((s[0] & four) | (s[2] << 4 & high), (s[1] & four) | (s[2] << 2 & high)),
                             word_pair((s[0] >> 4 & four) | (s[2] & high), (s[1] >> 4 & four) | (s[2] >> 2 & high))};
  const __m256 d = _mm256_set1_ps(half_at(p + 108));
  for (int i = 0; i < 2; ++i) {
    const __m256 v = _mm256_mul_ps(d, _mm256_sub_ps(eight_bytes(pairs[i]), _mm256_set1_ps(32.f)));
    _mm256_storeu_ps(step + 8 * i, v);
    _mm256_storeu_ps(low + 8 * i, _mm256_mul_ps(v, _mm256_set1_ps(-Q3_K::kZero)));
  }
}

inline void q4_steps_of(const uint8_t* p, float* step, float* low) {
  uint32_t s[3];
  std::memcpy(s, p + 4, 12);
  constexpr uint32_t six = 0x3f3f3f3f, four = 0x0f0f0f0f, high = 0x30303030;
  const uint64_t scales = word_pair(s[0] & six, (s[2] & four) | (s[0] >> 2 & high));
  const uint64_t minima = word_pair(s[1] & six, (s[2] >> 4 & four) | (s[1] >> 2 & high));
  _mm256_storeu_ps(step, _mm256_mul_ps(_mm256_set1_ps(half_at(p)), eight_bytes(scales)));
  _mm256_storeu_ps(low, _mm256_mul_ps(_mm256_set1_ps(-half_at(p + 2)), eight_bytes(minima)));
}

inline void steps_of(Q4_K, const uint8_t* p, float* step, float* low) { q4_steps_of(p, step, low); }
inline void steps_of(Q5_K, const uint8_t* p, float* step, float* low) { q4_steps_of(p, step, low); }

inline void steps_of(Q6_K, const uint8_t* p, float* step, float* low) {
  const __m256 d = _mm256_set1_ps(half_at(p + 208));
  for (int g = 0; g < 16; g += 8) {
    uint64_t scales;
    std::memcpy(&scales, p + 192 + g, 8);
    const __m256 v = _mm256_mul_ps(d, eight_bytes(scales));
    _mm256_storeu_ps(step + g, v);
    _mm256_storeu_ps(low + g, _mm256_mul_ps(v, _mm256_set1_ps(-Q6_K::kZero)));
  }
}

template <typename T>
struct BlockRows final : CodeRows {
  static constexpr int kPieces = T::kColumns / 32;
  const BlockWeight& weight;
  explicit BlockRows(const BlockWeight& w)
      : CodeRows(w.n, w.k, 32 / std::min(32, T::kGroup), T::kSigned, !T::kSigned), weight(w) {}
  const uint8_t* row(int64_t r) const { return weight.data + r * weight.row_bytes; }
  const ByteOrder& order() const override {
    static constexpr ByteOrder natural{{}, {}, true};
    return natural;
  }
  void codes(int64_t r, int64_t b0, int64_t b1, uint8_t* out) const override {
    const uint8_t* p = row(r) + b0 / kPieces * T::kBytes;
    const int64_t ahead = kCodeRows * weight.row_bytes;  // the rows that come next
    for (int64_t b = b0; b < b1; b += kPieces, p += T::kBytes, out += T::kColumns) {
      for (int i = 0; i < T::kBytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(p + ahead + i), _MM_HINT_T0);
#pragma GCC unroll 8
      for (int piece = 0; piece < kPieces; ++piece) put_codes(out + 32 * piece, piece_of(T{}, p, piece), T::kSigned);
    }
  }
  void steps(int64_t r, float* step, float* low) const override {
    constexpr int groups = T::kColumns / T::kGroup;
    const uint8_t* p = row(r);
    for (int64_t b = 0; b < weight.k / T::kColumns; ++b, p += T::kBytes) steps_of(T{}, p, step + b * groups, low + b * groups);
  }
};

// Eight columns of a row as fp32: step · code + low, rounded once.
template <typename T>
inline __m256 eight_values(const uint8_t* codes, __m256 step, __m256 low) {
  const __m128i eight = _mm_loadl_epi64((const __m128i*)codes);
  const __m256 code = _mm256_cvtepi32_ps(T::kSigned ? _mm256_cvtepi8_epi32(eight) : _mm256_cvtepu8_epi32(eight));
  return _mm256_fmadd_ps(code, step, low);
}

// Rows r0 … r1 written out; `put(out, values)` stores eight.
template <typename T, typename Number, typename Put>
void write_rows(const BlockWeight& w, int64_t r0, int64_t r1, Number* out, Put put) {
  alignas(32) uint8_t codes[32];
  float step[16], low[16];
  for (int64_t r = r0; r < r1; ++r)
    for (int64_t b = 0; b < w.k / T::kColumns; ++b) {
      const uint8_t* p = w.data + r * w.row_bytes + b * T::kBytes;
      steps_of(T{}, p, step, low);
#pragma GCC unroll 8
      for (int piece = 0; piece < T::kColumns / 32; ++piece) {
        _mm256_store_si256((__m256i*)codes, piece_of(T{}, p, piece));
        for (int i = 0; i < 32; i += 8, out += 8) {
          const int group = (32 * piece + i) / T::kGroup;
          put(out, eight_values<T>(codes + i, _mm256_set1_ps(step[group]), _mm256_set1_ps(low[group])));
        }
      }
    }
}

}  // namespace ck::CK_ISA
