// y = x Wᵀ for bf16 W: the two halves of a low-rank weight. Like packed.cpp, without anything to unpack.
#include "gemm.h"

namespace ck::CK_ISA {
namespace {

constexpr int64_t kAhead = 1024;  // numbers of a row that are asked for before they are used

template <int R, int M>
void dot_rows(const DenseWeight& w, const uint16_t* x, int64_t kp, int64_t row, float* res) {
  const uint16_t* rows[R];
  for (int r = 0; r < R; ++r) rows[r] = w.data + std::min(row + r, w.n - 1) * w.stride;
  __m512 acc[R][M];
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) acc[r][m] = _mm512_setzero_ps();
  int64_t ahead = kAhead;
  auto step = [&](int64_t k, __mmask32 mask) __attribute__((always_inline)) {
    __m512i v[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      _mm_prefetch(reinterpret_cast<const char*>(rows[r] + k + ahead), _MM_HINT_T0);
      v[r] = _mm512_maskz_loadu_epi16(mask, rows[r] + k);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m512i xv = _mm512_loadu_si512(x + m * kp + k);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r][m] = dot(acc[r][m], v[r], xv);
    }
  };
  const int64_t whole = w.k / 32 * 32;
  int64_t k = 0;
  for (const int64_t near = std::max<int64_t>(whole - kAhead, 0); k < near; k += 32) step(k, 0xffffffffu);
  ahead = kAhead + (R - 1) * w.stride;  // what follows the end of these rows is the beginning of the next
  for (; k < whole; k += 32) step(k, 0xffffffffu);
  if (whole < w.k) step(whole, (1u << (w.k - whole)) - 1);
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) res[r * M + m] = _mm512_reduce_add_ps(acc[r][m]);
}

using DotRows = void (*)(const DenseWeight&, const uint16_t*, int64_t, int64_t, float*);
DotRows dot_rows_for(int64_t columns) {
  static constexpr DotRows table[8] = {dot_rows<4, 1>, dot_rows<4, 2>, dot_rows<4, 3>, dot_rows<4, 4>,
                                       dot_rows<2, 5>, dot_rows<2, 6>, dot_rows<2, 7>, dot_rows<2, 8>};
  return table[columns - 1];
}

struct Decoder {
  const DenseWeight& w;
  int64_t row = 0;
  void begin(int64_t first, int64_t) { row = first; }
  void decode(int64_t i, int64_t k0, int64_t k1, uint16_t* out) const {
    const uint16_t* from = w.data + (row + i) * w.stride;
    for (int64_t k = k0; k < k1; k += 32, out += 32) {
      const int64_t left = std::clamp<int64_t>(w.k - k, 0, 32);
      _mm512_storeu_si512(out, _mm512_maskz_loadu_epi16(left == 32 ? 0xffffffffu : (1u << left) - 1, from + k));
    }
  }
};

}  // namespace

bool dense_linear(const Input& x, const DenseWeight& w, const Output& y, const Parallel& parallel) {
  const int terms = terms_of(x.dtype);
  if (x.rows * terms > 8) {
    if (terms > 1) return false;
    tiled_linear(x, y, w.n, {1}, false, parallel, [&] { return std::make_unique<TileFromRows<Decoder>>(Order{1}, w); });
    return true;
  }
  const int64_t kp = ceil_div(x.k, 128) * 128, columns = x.rows * terms;
  Buffer<uint16_t> xp(columns * kp);
  for (int64_t m = 0; m < x.rows; ++m) prepare_row(x, m, {1}, kp, xp.data + m * terms * kp);
  const DotRows kernel = dot_rows_for(columns);
  const int64_t rows = columns <= 4 ? 4 : 2;
  parallel(ceil_div(w.n, rows), [&](int64_t b0, int64_t b1) {
    float res[32];
    for (int64_t b = b0; b < b1; ++b) {
      kernel(w, xp.data, kp, b * rows, res);
      for (int64_t r = 0; r < rows && b * rows + r < w.n; ++r)
        for (int64_t m = 0; m < x.rows; ++m) {
          float total = 0.f;
          for (int t = terms - 1; t >= 0; --t) total += res[r * columns + m * terms + t];
          store_scalar(y, m, b * rows + r, total);
        }
    }
  });
  return true;
}

}  // namespace ck::CK_ISA
