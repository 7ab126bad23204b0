// y = x Wᵀ for W of one byte a code after unpacking: exact integer products with the digits of x, a step for every 16 or 32 columns.
//
// Four rows of W are unpacked 1024 columns at a time into L1, whatever their format, and multiplied with up to four rows of x at
// once; so a format is two functions, and everything else is compiled once. W = step · code + low; the low ends are multiplied
// with the sums of x. With VNNI codes are unsigned (128 is added to signed ones and leaves with the low ends); without it
// vpmaddubsw multiplies codes below 128, and the magnitudes of signed ones with digits that carry their signs.
#pragma once

#include <limits>

#include "digits.h"

namespace ck::CK_ISA {

constexpr int kCodeRows = 4;            // of W at once
constexpr int64_t kCodeBlocks = 32;     // of 32 columns that are unpacked at once

struct CodeRows {   // a weight
  int64_t n, k;
  int parts;        // steps in 32 columns: 1 or 2
  bool is_signed;   // codes are int8; otherwise they are below 128, or with VNNI below 256
  bool has_low;
  CodeRows(int64_t n_, int64_t k_, int parts_, bool signed_, bool low_)
      : n(n_), k(k_), parts(parts_), is_signed(signed_), has_low(low_ || (kVnni && signed_)) {}
  virtual ~CodeRows() = default;
  virtual const ByteOrder& order() const = 0;
  // Codes of blocks b0 … b1 of a row; b0 is a multiple of kCodeBlocks.
  virtual void codes(int64_t row, int64_t b0, int64_t b1, uint8_t* out) const = 0;
  // All steps and low ends of a row.
  virtual void steps(int64_t row, float* step, float* low) const = 0;
};

inline __m256i put_codes(uint8_t* out, __m256i v, bool is_signed) {
  if (kVnni && is_signed) v = _mm256_xor_si256(v, _mm256_set1_epi8(char(0x80)));
  _mm256_storeu_si256((__m256i*)out, v);
  return v;
}

// Sums of four products each of codes and one digit.
template <bool SIGNED>
inline __m256i products(__m256i code, __m256i magnitude, __m256i digit) {
#ifdef __AVX512VNNI__
  return _mm256_dpbusd_epi32(_mm256_setzero_si256(), code, digit);
#else
  if constexpr (SIGNED) return _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(digit, code));
  return _mm256_maddubs_epi16(code, digit);
#endif
}

template <int T, bool SIGNED>
inline __m256 dot_digits(__m256i code, __m256i magnitude, const int8_t* x) {
  __m256i d[T];
#pragma GCC unroll 3
  for (int t = 0; t < T; ++t) d[t] = _mm256_load_si256((const __m256i*)(x + 32 * t));
#ifdef __AVX512VNNI__
  const __m256i first = products<SIGNED>(code, magnitude, d[0]);
  if constexpr (T == 1) return _mm256_cvtepi32_ps(first);
  const __m256i both = _mm256_dpbusd_epi32(_mm256_slli_epi32(first, 8), code, d[T > 1]);
  if constexpr (T == 2) return _mm256_cvtepi32_ps(both);
  const __m256i last = products<SIGNED>(code, magnitude, d[T - 1]);
#else
  const __m256i one = _mm256_set1_epi16(1), base = _mm256_set1_epi16(kBase);
  const __m256i first = products<SIGNED>(code, magnitude, d[0]);
  if constexpr (T == 1) return _mm256_cvtepi32_ps(_mm256_madd_epi16(first, one));
  const __m256i second = products<SIGNED>(code, magnitude, d[T > 1]);
  const __m256i both = _mm256_add_epi32(_mm256_madd_epi16(first, base), _mm256_madd_epi16(second, one));
  if constexpr (T == 2) return _mm256_cvtepi32_ps(both);
  const __m256i last = _mm256_madd_epi16(products<SIGNED>(code, magnitude, d[T - 1]), one);
#endif
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(both), _mm256_set1_ps(float(kBase)), _mm256_cvtepi32_ps(last));
}

// The steps of a block in its eight lanes, of four columns each.
template <int PARTS>
inline __m256 lanes_of(const float* step) {
  if constexpr (PARTS == 1) return _mm256_broadcast_ss(step);
  const __m256 both = _mm256_castpd_ps(_mm256_broadcast_sd((const double*)step));
  return _mm256_permutevar_ps(both, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}

struct Piece {          // what one call multiplies
  const uint8_t* codes; // [kCodeRows][kCodeBlocks · 32]
  const float* step;    // [kCodeRows][step_stride], at the first block; with one row of x multiplied with its scale already
  int64_t step_stride;
  const int8_t* x;      // at the first block of the first row
  const float* scale;
  int64_t x_stride, scale_stride, blocks;
  float* acc;           // [kCodeRows][M][8], added to
};

template <int M, int T, int PARTS, bool SIGNED>
void multiply_piece(const Piece& p) {
  constexpr int R = kVnni || M < 4 ? kCodeRows : 2;  // sixteen registers hold eight sums
  for (int r0 = 0; r0 < kCodeRows; r0 += R) {
    __m256 acc[R][M];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) acc[r][m] = _mm256_load_ps(p.acc + ((r0 + r) * M + m) * 8);
    for (int64_t b = 0; b < p.blocks; ++b) {
      __m256i code[R], magnitude[R];
      __m256 step[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        code[r] = _mm256_load_si256((const __m256i*)(p.codes + ((r0 + r) * kCodeBlocks + b) * 32));
        magnitude[r] = SIGNED && !kVnni ? _mm256_abs_epi8(code[r]) : code[r];
        step[r] = lanes_of<PARTS>(p.step + (r0 + r) * p.step_stride + b * PARTS);
      }
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const __m256 scale = _mm256_broadcast_ss(p.scale + m * p.scale_stride + b);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const __m256 sum = dot_digits<T, SIGNED>(code[r], magnitude[r], p.x + m * p.x_stride + b * 32 * T);
          acc[r][m] = _mm256_fmadd_ps(sum, M == 1 ? step[r] : _mm256_mul_ps(step[r], scale), acc[r][m]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) _mm256_store_ps(p.acc + ((r0 + r) * M + m) * 8, acc[r][m]);
  }
}

using MultiplyPiece = void (*)(const Piece&);

template <int T, int PARTS>
MultiplyPiece piece_for(int64_t rows, bool is_signed) {
  if constexpr (!kVnni)
    if (is_signed)
      return rows == 1   ? multiply_piece<1, T, PARTS, true>
             : rows == 2 ? multiply_piece<2, T, PARTS, true>
                         : multiply_piece<4, T, PARTS, true>;
  return rows == 1   ? multiply_piece<1, T, PARTS, false>
         : rows == 2 ? multiply_piece<2, T, PARTS, false>
                     : multiply_piece<4, T, PARTS, false>;
}

inline MultiplyPiece piece_for(int64_t rows, int terms, int parts, bool is_signed) {
  if (terms == 1) return parts == 1 ? piece_for<1, 1>(rows, is_signed) : piece_for<1, 2>(rows, is_signed);
  if (terms == 2) return parts == 1 ? piece_for<2, 1>(rows, is_signed) : piece_for<2, 2>(rows, is_signed);
  return parts == 1 ? piece_for<3, 1>(rows, is_signed) : piece_for<3, 2>(rows, is_signed);
}

inline float add_lanes(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float dot_floats(const float* a, const float* b, int64_t count) {  // count is a multiple of 8
  __m256 total = _mm256_setzero_ps();
  for (int64_t i = 0; i < count; i += 8) total = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), total);
  return add_lanes(total);
}

// Rows of x that are multiplied together: 4, 4, … and what is left as 4, 2, 1; three are a two and a one.
inline int64_t rows_together(int64_t left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

struct CodeProduct {
  const CodeRows& w;
  const Digits& x;
  const Output& y;
  int64_t stride;   // of steps
  Buffer<uint8_t> codes{kCodeRows * kCodeBlocks * 32};
  Buffer<float> step, low, last, folded, acc;
  CodeProduct(const CodeRows& weight, const Digits& digits, const Output& out)
      : w(weight), x(digits), y(out), stride(digits.sum_stride), step(kCodeRows * stride), low(kCodeRows * stride),
        last(stride), folded(kCodeRows * stride), acc(x.rows * kCodeRows * 8) {
    const float* scale = x.scale.data + (x.rows - 1) * x.blocks;
    for (int64_t s = 0; s < x.blocks * x.parts; ++s) last.data[s] = scale[s / x.parts];
    std::memset(step.data, 0, kCodeRows * stride * sizeof(float));
    std::memset(low.data, 0, kCodeRows * stride * sizeof(float));
  }

  // Steps times the scales of the last row of x, where that is multiplied by itself.
  void fold() {
    for (int r = 0; r < kCodeRows; ++r)
      for (int64_t s = 0; s < x.blocks * x.parts; ++s) folded.data[r * stride + s] = step.data[r * stride + s] * last.data[s];
  }

  void rows(int64_t first) {
    for (int r = 0; r < kCodeRows; ++r) {
      const int64_t row = std::min(first + r, w.n - 1);
      w.steps(row, step.data + r * stride, low.data + r * stride);
      if (kVnni && w.is_signed)
        for (int64_t s = 0; s < x.blocks * x.parts; ++s) low.data[r * stride + s] -= 128.f * step.data[r * stride + s];
    }
    if (x.rows % 2) fold();
    std::memset(acc.data, 0, x.rows * kCodeRows * 8 * sizeof(float));
    for (int64_t b0 = 0; b0 < x.blocks; b0 += kCodeBlocks) {
      const int64_t b1 = std::min(b0 + kCodeBlocks, x.blocks);
      for (int r = 0; r < kCodeRows; ++r)
        w.codes(std::min(first + r, w.n - 1), b0, b1, codes.data + r * kCodeBlocks * 32);
      for (int64_t m = 0; m < x.rows;) {
        const int64_t together = rows_together(x.rows - m);
        const float* steps = together == 1 ? folded.data : step.data;
        piece_for(together, x.terms, x.parts, w.is_signed)(
            {codes.data, steps + b0 * x.parts, stride, x.codes.data + (m * x.blocks + b0) * 32 * x.terms,
             x.scale.data + m * x.blocks + b0, x.blocks * 32 * x.terms, x.blocks, b1 - b0, acc.data + m * kCodeRows * 8});
        m += together;
      }
    }
    store(first);
  }

  void store(int64_t first) {
    const int64_t count = std::min<int64_t>(kCodeRows, w.n - first);
    for (int64_t m = 0; m < x.rows;) {
      const int64_t together = rows_together(x.rows - m);
      for (int64_t i = 0; i < together; ++i)
        for (int64_t r = 0; r < count; ++r) {
          float total = add_lanes(_mm256_load_ps(acc.data + (m * kCodeRows + r * together + i) * 8));
          if (w.has_low) total += dot_floats(low.data + r * stride, x.sums.data + (m + i) * x.sum_stride, stride);
          store_scalar(y, m + i, first + r, total);
        }
      m += together;
    }
  }
};

inline void code_linear(const Input& x, const CodeRows& w, const Output& y, const Parallel& parallel) {
  const int terms = x.dtype == F32 ? 3 : 2;
  const Digits digits(x, terms, w.parts, w.order(), parallel);
  parallel(ceil_div(w.n, kCodeRows), [&](int64_t t0, int64_t t1) {
    CodeProduct product(w, digits, y);
    for (int64_t t = t0; t < t1; ++t) product.rows(t * kCodeRows);
  });
}

}  // namespace ck::CK_ISA
