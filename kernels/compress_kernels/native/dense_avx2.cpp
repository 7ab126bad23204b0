// y = x Wᵀ for bf16 W with AVX2, a few rows of x: bf16 becomes fp32 by a shift (even columns) or a mask (odd ones).
#include <algorithm>

#include "isa.h"
#include "scalars.h"

namespace ck::CK_ISA {
namespace {

constexpr int64_t kAhead = 1024;  // numbers of a row that are asked for before they are used

// x [M][kp] as fp32, of each 16 columns the eight even ones first; columns beyond k are zero, and W is not read there.
template <int R, int M>
void dot_rows(const DenseWeight& w, const float* x, int64_t kp, int64_t row, float* res) {
  const uint16_t* rows[R];
  for (int r = 0; r < R; ++r) rows[r] = w.data + std::min(row + r, w.n - 1) * w.stride;
  __m256 acc[R][M] = {};
  const auto step = [&](const uint16_t* const* from, int64_t k, int64_t at) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m256i v = _mm256_loadu_si256((const __m256i*)(from[r] + at));
      const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
      const __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(int(0xffff0000u))));
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        acc[r][m] = _mm256_fmadd_ps(even, _mm256_load_ps(x + m * kp + k), acc[r][m]);
        acc[r][m] = _mm256_fmadd_ps(odd, _mm256_load_ps(x + m * kp + k + 8), acc[r][m]);
      }
    }
  };
  const int64_t whole = w.k / 16 * 16;
  for (int64_t k = 0; k < whole; k += 16) {
    for (int r = 0; r < R; ++r) _mm_prefetch(reinterpret_cast<const char*>(rows[r] + k + kAhead), _MM_HINT_T0);
    step(rows, k, k);
  }
  if (whole < w.k) {
    alignas(32) uint16_t tail[R][16] = {};
    const uint16_t* from[R];
    for (int r = 0; r < R; ++r) {
      std::memcpy(tail[r], rows[r] + whole, (w.k - whole) * 2);
      from[r] = tail[r];
    }
    step(from, whole, 0);
  }
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) {
      alignas(32) float lanes[8];
      _mm256_store_ps(lanes, acc[r][m]);
      res[r * M + m] = ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
    }
}

}  // namespace

bool dense_linear(const Input& x, const DenseWeight& w, const Output& y, const Parallel& parallel) {
  if (x.rows > 8) return false;
  const int64_t kp = ceil_div(x.k, 16) * 16;
  Buffer<float> wide(x.rows * kp);
  for (int64_t m = 0; m < x.rows; ++m)
    for (int64_t k = 0; k < kp; ++k)
      wide.data[m * kp + k / 16 * 16 + k % 2 * 8 + k % 16 / 2] = k < x.k ? load_scalar(x.data, x.dtype, m * x.k + k) : 0.f;
  parallel(ceil_div(w.n, 4), [&](int64_t t0, int64_t t1) {
    float res[8];
    for (int64_t t = t0; t < t1; ++t)
      for (int64_t m = 0; m < x.rows;) {
        const int64_t together = x.rows - m >= 2 ? 2 : 1;
        (together == 2 ? dot_rows<4, 2> : dot_rows<4, 1>)(w, wide.data + m * kp, kp, 4 * t, res);
        for (int64_t r = 0; r < 4 && 4 * t + r < w.n; ++r)
          for (int64_t i = 0; i < together; ++i) store_scalar(y, m + i, 4 * t + r, res[r * together + i]);
        m += together;
      }
  });
  return true;
}

}  // namespace ck::CK_ISA
