// y = x Wᵀ for W of which a bit mask says what was kept: bitmask and N:M weights, values in bf16 or as b-bit codes.
//
// A vector is 32 columns: their mask is one 32-bit word, the kept values follow each other in memory and vpexpandw puts
// them where they belong. Codes are cut out of the stream first (vpermb, vpsrlvw) and looked up as in packed.cpp.
#include "gemm.h"

#ifdef __AVX512BF16__
namespace ck {
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

// `count` codes from bit `position` of the stream, one in the low bits of each word (with the next one's bits above).
inline __m512i load_codes(const SparseWeight& w, const Windows& win, int64_t position, int count) {
  const int start = int(position & 7), bytes = (start + count * w.bits + 7) / 8;
  const __m512i raw = _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, bytes), w.values + (position >> 3));
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
  const auto make = [](__m512 first, __m512 second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); };
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

enum Kind { PLAIN, NARROW, WIDE };  // bf16 values, codes of 2–5 bits, codes of 6–8 bits

template <Kind KIND, int R, int M>
void dot_rows(const SparseWeight& w, const Windows& win, const uint16_t* x, int64_t kp, int64_t row, float* buffer,
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
    if (KIND != PLAIN) {
      float* s = buffer + 2 * r * padded;
      load_group_row(w.scale, w.scale_dtype, w.per_tensor ? 0 : at, w.groups, s);
      if (w.zero) load_group_row(w.zero, U8, w.per_tensor ? 0 : at, w.groups, s + padded);
      scale[r] = s;
      zero[r] = s + padded;
      tables[r] = make_tables<KIND == WIDE>(w.bits, float(1 << (w.bits - 1)));
    }
  }
  __m512 acc[R][M];
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) acc[r][m] = _mm512_setzero_ps();
  const int64_t group = w.groups == 1 ? kp : w.group;
  for (int64_t k0 = 0, g = 0; k0 < w.k; k0 += group, ++g) {
    const int64_t k1 = std::min(k0 + group, w.k);
    __m512 part[R][M];
    if (KIND != PLAIN)
      for (int r = 0; r < R; ++r) {
        for (int m = 0; m < M; ++m) part[r][m] = _mm512_setzero_ps();
        if (w.zero) tables[r] = make_tables<KIND == WIDE>(w.bits, zero[r][g]);
      }
    for (int64_t k = k0; k < k1; k += 32) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const uint32_t bits = mask_word(w, mask[r], k);
        const int count = _mm_popcnt_u32(bits);
        __m512i v, high;
        if (KIND == PLAIN) {
          v = _mm512_maskz_expand_epi16(bits, _mm512_maskz_loadu_epi16(first_words(count),
                                                                       w.values + (position[r] >> 3)));
          position[r] += 16 * count;
        } else {
          const __m512i code = _mm512_maskz_expand_epi16(bits, load_codes(w, win, position[r], count));
          v = _mm512_maskz_permutexvar_epi16(bits, code, tables[r].low);
          if (KIND == WIDE) high = _mm512_maskz_permutexvar_epi16(bits, _mm512_srli_epi16(code, 5), tables[r].high);
          position[r] += w.bits * count;
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const __m512i xv = _mm512_loadu_si512(x + m * kp + k);
          __m512& to = KIND == PLAIN ? acc[r][m] : part[r][m];
          to = dot(to, v, xv);
          if (KIND == WIDE) to = dot(to, high, xv);
        }
      }
    }
    if (KIND != PLAIN)
      for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m) acc[r][m] = _mm512_fmadd_ps(part[r][m], _mm512_set1_ps(scale[r][g]), acc[r][m]);
  }
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) res[r * M + m] = _mm512_reduce_add_ps(acc[r][m]);
}

using DotRows = void (*)(const SparseWeight&, const Windows&, const uint16_t*, int64_t, int64_t, float*, float*);

template <Kind KIND>
DotRows dot_rows_for(int64_t columns) {
  static constexpr DotRows table[8] = {dot_rows<KIND, 4, 1>, dot_rows<KIND, 4, 2>, dot_rows<KIND, 2, 3>,
                                       dot_rows<KIND, 2, 4>, dot_rows<KIND, 2, 5>, dot_rows<KIND, 2, 6>,
                                       dot_rows<KIND, 2, 7>, dot_rows<KIND, 2, 8>};
  return table[columns - 1];
}

DotRows dot_rows_for(int bits, int64_t columns) {
  if (bits == 16) return dot_rows_for<PLAIN>(columns);
  return bits <= 5 ? dot_rows_for<NARROW>(columns) : dot_rows_for<WIDE>(columns);
}

// Expanded rows for the tiled product; chunks of a row come in order, so that each row remembers how far it is.
struct Decoder {
  const SparseWeight& w;
  const Windows& win;
  int64_t row = 0, padded;
  int64_t position[kTileN];
  Buffer<float> groups;
  Decoder(const SparseWeight& weight, const Windows& windows)
      : w(weight), win(windows), padded(weight.groups + 16), groups(2 * kTileN * padded) {}

  void begin(int64_t first, int64_t count) {
    row = first;
    for (int64_t i = 0; i < count; ++i) {
      position[i] = w.start[row + i];
      if (w.bits == 16) continue;
      float* s = groups.data + 2 * i * padded;
      load_group_row(w.scale, w.scale_dtype, w.per_tensor ? 0 : row + i, w.groups, s);
      if (w.zero)
        load_group_row(w.zero, U8, w.per_tensor ? 0 : row + i, w.groups, s + padded);
      else
        std::fill(s + padded, s + 2 * padded, float(1 << (w.bits - 1)));
    }
  }

  void decode(int64_t i, int64_t k0, int64_t k1, uint16_t* out) {
    const uint8_t* mask = w.mask + (row + i) * w.mask_bytes;
    const float* s = groups.data + 2 * i * padded;
    for (int64_t k = k0; k < k1; k += 32, out += 32) {
      const uint32_t bits = mask_word(w, mask, k);
      const int count = _mm_popcnt_u32(bits);
      __m512i v;
      if (w.bits == 16) {
        v = _mm512_maskz_loadu_epi16(first_words(count), w.values + (position[i] >> 3));
      } else {
        const int64_t g = w.groups == 1 ? 0 : std::min(k / w.group, w.groups - 1);
        const __m512 z = _mm512_set1_ps(s[padded + g]), f = _mm512_set1_ps(s[g]);
        const __m512i code =
            _mm512_and_si512(load_codes(w, win, position[i], count), _mm512_set1_epi16((1 << w.bits) - 1));
        const __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(code)));
        const __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(code, 1)));
        v = (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_sub_ps(b, z), f), _mm512_mul_ps(_mm512_sub_ps(a, z), f));
      }
      _mm512_storeu_si512(out, _mm512_maskz_expand_epi16(bits, v));
      position[i] += w.bits * count;
    }
  }
};

}  // namespace

bool sparse_linear(const Input& x, const SparseWeight& w, const Output& y, const Parallel& parallel) {
  if (w.bits != 16 && w.groups != 1 && w.group % 32) return false;
  const Windows win(w.bits == 16 ? 8 : w.bits);
  const int terms = terms_of(x.dtype);
  if (x.dtype == BF16 && x.rows > 8) {
    tiled_linear(x, y, w.n, {1}, false, parallel, [&] { return std::make_unique<TileFromRows<Decoder>>(Order{1}, w, win); });
    return true;
  }
  if (x.rows > 32) return false;
  const int64_t kp = ceil_div(x.k, 128) * 128, columns = x.rows * terms;
  Buffer<uint16_t> xp(columns * kp);
  for (int64_t m = 0; m < x.rows; ++m) prepare_row(x, m, {1}, kp, xp.data + m * terms * kp);
  const int64_t per_pass = 8 / terms * terms;
  for (int64_t c0 = 0; c0 < columns; c0 += per_pass) {
    const int64_t here = std::min(per_pass, columns - c0), rows = here <= 2 ? 4 : 2;
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

}  // namespace ck
#endif
