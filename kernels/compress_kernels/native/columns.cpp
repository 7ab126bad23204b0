// GPTQ's recursion over the columns of one block: round a column, push its error onto those that follow.
// Compiled once for each instruction set; CK_ISA names the namespace. Every number is computed in the same order whatever the
// instruction set and the number of threads.
#include <algorithm>
#include <vector>

#include "common.h"
#include "floats.h"

namespace ck::CK_ISA {
namespace step {

// As wide as a register: of wider vectors the compiler keeps an array in memory.
#if defined(__AVX512F__)
constexpr int kWide = 16, kVectors = 4;
#elif defined(__AVX__)
constexpr int kWide = 8, kVectors = 8;
#else
constexpr int kWide = 4, kVectors = 8;
#endif
constexpr int64_t kStrip = kVectors * kWide;  // rows that go through the block together: 128 columns of errors are 32 KB
typedef float Rows __attribute__((vector_size(4 * kWide), aligned(4), may_alias));

inline Rows load_rows(const float* p) { return *reinterpret_cast<const Rows*>(p); }
inline void store_rows(float* p, const Rows& v) { *reinterpret_cast<Rows*>(p) = v; }

// The nearest whole number, halves to even; beyond 2^22 the numbers are whole enough to be clipped.
inline Rows whole(const Rows& v) { return (v + 12582912.f) - 12582912.f; }

inline Rows rounded_to(const Rows& v, const float* scale, const float* low, const float* high) {
  const Rows s = load_rows(scale), least = load_rows(low), most = load_rows(high);
  const Rows near = whole(v / s) * s, above = near < least ? least : near;
  return above > most ? most : above;
}

// One strip of a copy of the block, `strip` numbers a column. Columns come pushed and leave rounded in `values`.
inline void round_strip(const RoundColumns& b, const float* across, const float* drift, int64_t r0, float* work, float* errors, float* values,
                        float* grid) {
  for (int64_t i = 0; i < b.columns; ++i) {
    Rows now[kVectors];
    for (int v = 0; v < kVectors; ++v) now[v] = load_rows(work + i * kStrip + v * kWide);
    const float *push = across + i * b.columns, *add = drift ? drift + i * b.columns : nullptr;
    for (int64_t k = 0; k < i; ++k)
      for (int v = 0; v < kVectors; ++v) {
        now[v] -= push[k] * load_rows(errors + k * kStrip + v * kWide);
        if (add) now[v] += add[k] * load_rows(work + k * kStrip + v * kWide);
      }
    const int64_t group = b.groups[i] * b.rows + r0, count = std::min(kStrip, b.rows - r0);
    const float* given[3] = {b.scale + group, b.low + group, b.high + group};
    for (int j = 0; count < kStrip && j < 3; ++j) {  // the last strip: what is beyond is rounded as its first row
      for (int64_t r = 0; r < kStrip; ++r) grid[j * kStrip + r] = given[j][r < count ? r : 0];
      given[j] = grid + j * kStrip;
    }
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = v * kWide;
      Rows from = now[v];
      if (i == 0 && b.first) {
        float first[kWide];
        for (int l = 0; l < kWide; ++l) first[l] = b.first[r0 + std::min<int64_t>(at + l, count - 1)];
        from = load_rows(first);
      }
      const Rows value = rounded_to(from, given[0] + at, given[1] + at, given[2] + at);
      store_rows(work + i * kStrip + at, now[v]);
      store_rows(values + i * kStrip + at, value);
      store_rows(errors + i * kStrip + at, (now[v] - value) / b.root[i * b.root_stride + i]);
    }
  }
}

}  // namespace step

void round_columns(const RoundColumns& b, const Parallel& parallel) {
  const int64_t n = b.columns;
  std::vector<float> across(n * n), drift(b.drift ? n * n : 1);  // what column i takes of those before it lies together
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < i; ++k) {
      across[i * n + k] = b.root[k * b.root_stride + i];
      if (b.drift) drift[i * n + k] = b.drift[k * b.drift_stride + i];
    }
  parallel(ceil_div(b.rows, step::kStrip), [&](int64_t s0, int64_t s1) {
    std::vector<float> work(n * step::kStrip), errors(n * step::kStrip), values(n * step::kStrip), grid(3 * step::kStrip);
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t r0 = s * step::kStrip, count = std::min(step::kStrip, b.rows - r0);
      for (int64_t i = 0; i < n; ++i) {
        std::copy_n(b.block + i * b.rows + r0, count, work.data() + i * step::kStrip);
        std::fill(work.data() + i * step::kStrip + count, work.data() + (i + 1) * step::kStrip, 0.f);
      }
      step::round_strip(b, across.data(), b.drift ? drift.data() : nullptr, r0, work.data(), errors.data(), values.data(), grid.data());
      for (int64_t i = 0; i < n; ++i) {
        std::copy_n(work.data() + i * step::kStrip, count, b.block + i * b.rows + r0);
        std::copy_n(values.data() + i * step::kStrip, count, b.values + i * b.rows + r0);
        std::copy_n(errors.data() + i * step::kStrip, count, b.errors + i * b.rows + r0);
      }
    }
  });
}

}  // namespace ck::CK_ISA
