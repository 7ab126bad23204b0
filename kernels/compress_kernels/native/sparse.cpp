// y = x Wᵀ for W of which a bit mask says what was kept: bitmask and N:M weights, values in bf16 or as b-bit codes.
//
// A vector is 32 columns: their mask is one 32-bit word, the kept values follow each other in memory and vpexpandw puts
// them where they belong. Codes are cut out of the stream first (vpermb, vpsrlvw) and looked up as in packed.cpp.
#include "gemm.h"

namespace ck::CK_ISA {
namespace {

inline uint32_t mask_word(const SparseWeight& w, const uint8_t* row, int64_t k) {
  uint32_t bits = 0;
  const int64_t at = k / 8;
  if (at + 4 <= w.mask_bytes)
    std::memcpy(&bits, row + at, 4);
  else if (at < w.mask_bytes)
    std::memcpy(&bits, row + at, w.mask_bytes - at);
  return bits;
}

inline __mmask32 first_words(int count) { return __mmask32(_bzhi_u32(0xffffffffu, count)); }

// For each of 8 starting bits: byte and shift of the 16-bit window in which each of 32 codes lies.
struct Windows {
  alignas(64) uint8_t bytes[8][64];
  alignas(64) uint16_t shift[8][32];
  explicit Windows(int bits) {
    for (int start = 0; start < 8; ++start)
      for (int i = 0; i < 32; ++i) {
        const int bit = start + i * bits;
        bytes[start][2 * i] = uint8_t(bit / 8);
        bytes[start][2 * i + 1] = uint8_t(bit / 8 + 1);
        shift[start][i] = uint16_t(bit % 8);
      }
  }
};

// Masked loads are slow where they cross a cache line, so rows are read whole vectors at a time, up to 64 bytes beyond
// what they need; only the rows at the very end of the stream read exactly (WHOLE = false).
inline bool can_read_whole(const SparseWeight& w, int64_t after_row) { return (w.start[after_row] >> 3) + 64 <= w.value_bytes; }

template <bool WHOLE>
inline __m512i load_values(const SparseWeight& w, int64_t position, int count) {
  const uint8_t* p = w.values + (position >> 3);
  if (!WHOLE) return _mm512_maskz_loadu_epi16(first_words(count), p);
  __m512i v = _mm512_loadu_si512(p);
  asm("" : "+v"(v));  // vpexpandw straight from memory is slow
  return v;
}

// `count` codes from bit `position` of the stream, one in the low bits of each word (with the next one's bits above).
template <bool WHOLE>
inline __m512i load_codes(const SparseWeight& w, const Windows& win, int64_t position, int count) {
  const int start = int(position & 7), bytes = (start + count * w.bits + 7) / 8;
  const uint8_t* p = w.values + (position >> 3);
  const __m512i raw = WHOLE ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, bytes), p);
  return _mm512_srlv_epi16(_mm512_permutexvar_epi8(_mm512_load_si512(win.bytes[start]), raw),
                           _mm512_load_si512(win.shift[start]));
}

inline __m512 iota(float first) {
  return _mm512_add_ps(_mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_ps(first));
}

// bf16 of (code − zero) for 32 values of the low five bits, exact; above 5 bits of the low bits alone, and of
// 32 · (rest) − zero.
struct Tables {
  __m512i low, high;
};

template <bool WIDE>
inline Tables make_tables(int bits, float zero) {
  const __m512 z = _mm512_set1_ps(zero);
  const auto make = [](__m512 first, __m512 second) { return to_bf16(first, second); };
  if (WIDE) {
    const __m512i rest = _mm512_and_si512(_mm512_cvtps_epi32(iota(0)), _mm512_set1_epi32((1 << (bits - 5)) - 1));
    const __m512 high = _mm512_fmsub_ps(_mm512_cvtepi32_ps(rest), _mm512_set1_ps(32.f), z);
    return {make(iota(0), iota(16)), make(high, high)};
  }
  if (bits == 5) return {make(_mm512_sub_ps(iota(0), z), _mm512_sub_ps(iota(16), z)), _mm512_setzero_si512()};
  const __m512i code = _mm512_and_si512(_mm512_cvtps_epi32(iota(0)), _mm512_set1_epi32((1 << bits) - 1));
  const __m512 value = _mm512_sub_ps(_mm512_cvtepi32_ps(code), z);
  return {make(value, value), _mm512_setzero_si512()};
}

// bf16 of scale · (code − zero) for up to five bits.
inline __m512i scaled_table(int bits, __m512 z, __m512 scale) {
  const __m512i low = _mm512_set1_epi32((1 << bits) - 1);
  const auto half = [&](float first) {
    const __m512i code = _mm512_and_si512(_mm512_cvtps_epi32(iota(first)), low);
    return _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(code), z), scale);
  };
  return to_bf16(half(0), half(16));
}

enum Kind { PLAIN, NARROW, WIDE };  // bf16 values, codes of 2–5 bits, codes of 6–8 bits

template <Kind KIND, int R, int M, bool WHOLE>
void dot_rows_from(const SparseWeight& w, const Windows& win, const uint16_t* x, int64_t kp, int64_t row, float* buffer,
                   float* res) {
  const uint8_t* mask[R];
  int64_t position[R];
  const float *scale[R], *zero[R];
  Tables tables[R];
  const int64_t padded = w.groups + 16;
  for (int r = 0; r < R; ++r) {
    const int64_t at = std::min(row + r, w.n - 1);
    mask[r] = w.mask + at * w.mask_bytes;
    position[r] = w.start[at];
    if constexpr (KIND != PLAIN) {
      float* s = buffer + 2 * r * padded;
      load_group_row(w.scale, w.scale_dtype, w.per_tensor ? 0 : at, w.groups, s);
      if (w.zero) load_group_row(w.zero, U8, w.per_tensor ? 0 : at, w.groups, s + padded);
      scale[r] = s;
      zero[r] = s + padded;
      tables[r] = make_tables<KIND == WIDE>(w.bits, float(1 << (w.bits - 1)));
    }
  }
  __m512 acc[R][M], part[R][M];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) acc[r][m] = part[r][m] = _mm512_setzero_ps();
  const bool zeros = w.zero != nullptr;
  const int value_bits = w.bits;
  const uint8_t* values = w.values;

  // The next R rows begin where these end: each byte is asked for about R rows before it is used.
  const int64_t ahead = (w.start[std::min(row + R, w.n)] - w.start[std::min(row, w.n)]) >> 3;
  auto step = [&](int64_t k, auto word) __attribute__((always_inline)) {
    __m512i v[R], high[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const uint32_t bits = word(mask[r]);
      const int count = _mm_popcnt_u32(bits);
      _mm_prefetch(reinterpret_cast<const char*>(values + (position[r] >> 3) + ahead), _MM_HINT_T0);
      if constexpr (KIND == PLAIN) {
        v[r] = _mm512_maskz_expand_epi16(bits, load_values<WHOLE>(w, position[r], count));
        position[r] += 16 * count;
      } else {
        const __m512i code = _mm512_maskz_expand_epi16(bits, load_codes<WHOLE>(w, win, position[r], count));
        v[r] = _mm512_maskz_permutexvar_epi16(bits, code, tables[r].low);
        if constexpr (KIND == WIDE)
          high[r] = _mm512_maskz_permutexvar_epi16(bits, _mm512_srli_epi16(code, 5), tables[r].high);
        position[r] += value_bits * count;
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m512i xv = _mm512_loadu_si512(x + m * kp + k);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        if constexpr (KIND == PLAIN) {
          acc[r][m] = dot(acc[r][m], v[r], xv);
        } else {
          part[r][m] = dot(part[r][m], v[r], xv);
          if constexpr (KIND == WIDE) part[r][m] = dot(part[r][m], high[r], xv);
        }
      }
    }
  };
  const auto columns = [&](int64_t k0, int64_t k1) __attribute__((always_inline)) {
    const int64_t whole = std::min(k1, w.mask_bytes / 4 * 32);
    int64_t k = k0;
    for (; k < whole; k += 32)
      step(k, [&](const uint8_t* p) __attribute__((always_inline)) {
        uint32_t bits;
        std::memcpy(&bits, p + k / 8, 4);
        return bits;
      });
    for (; k < k1; k += 32)
      step(k, [&](const uint8_t* p) __attribute__((always_inline)) { return mask_word(w, p, k); });
  };
  if constexpr (KIND == PLAIN) {
    columns(0, w.k);
  } else {
    const int64_t group = w.groups == 1 ? kp : w.group;
    for (int64_t k0 = 0, g = 0; k0 < w.k; k0 += group, ++g) {
      if (zeros)
        for (int r = 0; r < R; ++r) tables[r] = make_tables<KIND == WIDE>(value_bits, zero[r][g]);
      columns(k0, std::min(k0 + group, w.k));
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          acc[r][m] = _mm512_fmadd_ps(part[r][m], _mm512_set1_ps(scale[r][g]), acc[r][m]);
          part[r][m] = _mm512_setzero_ps();
        }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) res[r * M + m] = _mm512_reduce_add_ps(acc[r][m]);
}

template <Kind KIND, int R, int M>
void dot_rows(const SparseWeight& w, const Windows& win, const uint16_t* x, int64_t kp, int64_t row, float* buffer,
              float* res) {
  if (can_read_whole(w, std::min(row + R, w.n)))
    dot_rows_from<KIND, R, M, true>(w, win, x, kp, row, buffer, res);
  else
    dot_rows_from<KIND, R, M, false>(w, win, x, kp, row, buffer, res);
}

using DotRows = void (*)(const SparseWeight&, const Windows&, const uint16_t*, int64_t, int64_t, float*, float*);

constexpr int rows_for(int columns) { return columns <= 4 ? 4 : 2; }

template <Kind KIND>
DotRows dot_rows_for(int64_t columns) {
  static constexpr DotRows table[8] = {
      dot_rows<KIND, rows_for(1), 1>, dot_rows<KIND, rows_for(2), 2>, dot_rows<KIND, rows_for(3), 3>,
      dot_rows<KIND, rows_for(4), 4>, dot_rows<KIND, rows_for(5), 5>, dot_rows<KIND, rows_for(6), 6>,
      dot_rows<KIND, rows_for(7), 7>, dot_rows<KIND, rows_for(8), 8>};
  return table[columns - 1];
}

DotRows dot_rows_for(int bits, int64_t columns) {
  if (bits == 16) return dot_rows_for<PLAIN>(columns);
  return bits <= 5 ? dot_rows_for<NARROW>(columns) : dot_rows_for<WIDE>(columns);
}

// A row of bf16(scale · (code − zero)), or of the values, zeros where nothing was kept: [k rounded up to 32].
template <Kind KIND, bool WHOLE>
void expand_row_from(const SparseWeight& w, const Windows& win, int64_t row, float* buffer, uint16_t* out) {
  const uint8_t* mask = w.mask + row * w.mask_bytes;
  const int64_t padded = w.groups + 16, group = w.groups == 1 ? w.k : w.group;
  int64_t position = w.start[row];
  if constexpr (KIND != PLAIN) {
    load_group_row(w.scale, w.scale_dtype, w.per_tensor ? 0 : row, w.groups, buffer);
    if (w.zero)
      load_group_row(w.zero, U8, w.per_tensor ? 0 : row, w.groups, buffer + padded);
    else
      std::fill(buffer + padded, buffer + 2 * padded, float(1 << (w.bits - 1)));
  }
  const __m512i low = _mm512_set1_epi16((1 << w.bits % 16) - 1);
  for (int64_t k0 = 0, g = 0; k0 < w.k; k0 += group, ++g) {
    const int64_t k1 = std::min(k0 + group, w.k);
    __m512 z, f;
    __m512i table;
    if constexpr (KIND != PLAIN) z = _mm512_set1_ps(buffer[padded + g]), f = _mm512_set1_ps(buffer[g]);
    if constexpr (KIND == NARROW) table = scaled_table(w.bits, z, f);
    for (int64_t k = k0; k < k1; k += 32) {
      const uint32_t bits = mask_word(w, mask, k);
      const int count = _mm_popcnt_u32(bits);
      _mm_prefetch(reinterpret_cast<const char*>(w.values + (position >> 3) + 2048), _MM_HINT_T0);
      __m512i v;
      if constexpr (KIND == PLAIN) {
        v = _mm512_maskz_expand_epi16(bits, load_values<WHOLE>(w, position, count));
      } else {
        const __m512i code = load_codes<WHOLE>(w, win, position, count);
        if constexpr (KIND == NARROW) {
          v = _mm512_maskz_permutexvar_epi16(bits, _mm512_maskz_expand_epi16(bits, code), table);
        } else {
          const __m512i number = _mm512_and_si512(code, low);
          const __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(number)));
          const __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(number, 1)));
          const auto times = [&](__m512 c) { return _mm512_mul_ps(_mm512_sub_ps(c, z), f); };
          v = _mm512_maskz_expand_epi16(bits, to_bf16(times(a), times(b)));
        }
      }
      position += w.bits * count;
      if (WHOLE || k + 32 <= w.k)
        _mm512_storeu_si512(out + k, v);
      else
        _mm512_mask_storeu_epi16(out + k, low_words(w.k - k), v);
    }
  }
}

// Whole vectors are stored where `room` numbers may be written.
void expand_row(const SparseWeight& w, const Windows& win, int64_t row, float* buffer, uint16_t* out, int64_t room) {
  const bool whole = can_read_whole(w, row + 1) && room >= ceil_div(w.k, 32) * 32;
  const auto take = [&](auto kind) {
    constexpr Kind K = decltype(kind)::value;
    whole ? expand_row_from<K, true>(w, win, row, buffer, out) : expand_row_from<K, false>(w, win, row, buffer, out);
  };
  if (w.bits == 16) return take(std::integral_constant<Kind, PLAIN>{});
  if (w.bits <= 5) return take(std::integral_constant<Kind, NARROW>{});
  take(std::integral_constant<Kind, WIDE>{});
}

bool in_vectors(const SparseWeight& w) { return w.bits == 16 || w.groups == 1 || w.group % 32 == 0; }

}  // namespace

bool expand_rows(const SparseWeight& w, int64_t r0, int64_t r1, uint16_t* out) {
  if (!in_vectors(w)) return false;
  const Windows win(w.bits == 16 ? 8 : w.bits);
  Buffer<float> buffer(2 * (w.groups + 16));
  for (int64_t r = r0; r < r1; ++r) expand_row(w, win, r, buffer.data, out + (r - r0) * w.k, (r1 - r) * w.k);
  return true;
}

bool sparse_linear(const Input& x, const SparseWeight& w, const Output& y, const Parallel& parallel) {
  if (sparse_integers(x, w, y, parallel)) return true;
  if (!in_vectors(w)) return false;
  const Windows win(w.bits == 16 ? 8 : w.bits);
  const int terms = terms_of(x.dtype);
  // Codes cost more to expand than values: from six rows on once is cheaper for all of them.
  if (x.dtype == BF16 && x.rows > (w.bits == 16 ? 8 : 5)) {
    rows_linear(x, y, w.n, parallel, [&] {
      auto buffer = std::make_shared<Buffer<float>>(2 * (w.groups + 16));
      return [&w, &win, buffer](int64_t row, uint16_t* out, int64_t kp) {
        expand_row(w, win, row, buffer->data, out, kp);
        std::memset(out + w.k, 0, (kp - w.k) * 2);
      };
    });
    return true;
  }
  if (x.rows > 32) return false;
  const int64_t kp = ceil_div(x.k, 128) * 128, columns = x.rows * terms;
  Buffer<uint16_t> xp(columns * kp);
  for (int64_t m = 0; m < x.rows; ++m) prepare_row(x, m, {1}, kp, xp.data + m * terms * kp);
  const int64_t per_pass = 8 / terms * terms;
  for (int64_t c0 = 0; c0 < columns; c0 += per_pass) {
    const int64_t here = std::min(per_pass, columns - c0), rows = rows_for(int(here));
    const DotRows kernel = dot_rows_for(w.bits, here);
    parallel(ceil_div(w.n, rows), [&](int64_t b0, int64_t b1) {
      Buffer<float> buffer(2 * rows * (w.groups + 16));
      float res[32];
      for (int64_t b = b0; b < b1; ++b) {
        kernel(w, win, xp.data + c0 * kp, kp, b * rows, buffer.data, res);
        for (int64_t r = 0; r < rows && b * rows + r < w.n; ++r)
          for (int64_t m = 0; m < here / terms; ++m) {
            float total = 0.f;
            for (int t = terms - 1; t >= 0; --t) total += res[r * here + m * terms + t];
            store_scalar(y, c0 / terms + m, b * rows + r, total);
          }
      }
    });
  }
  return true;
}

}  // namespace ck::CK_ISA
