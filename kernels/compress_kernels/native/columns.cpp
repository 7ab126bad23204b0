// GPTQ's recursion over the columns of one block: round a column, push its error onto those that follow.
// Compiled once for each instruction set; CK_ISA names the namespace. Every number is computed in the same order whatever the
// instruction set and the number of threads.
#include <algorithm>
#include <vector>

#include "common.h"
#include "floats.h"

namespace ck::CK_ISA {
namespace step {

constexpr int kVectors = kLanes == 16 ? 4 : 8;
constexpr int64_t kStrip = kVectors * kLanes;  // rows that go through the block together: 128 columns of errors are 32 KB at most

// The nearest whole number, halves to even; beyond 2^22 the numbers are whole enough to be clipped.
inline Floats whole(const Floats& v) { return (v + 12582912.f) - 12582912.f; }

inline Floats rounded_to(const Floats& v, const float* scale, const float* low, const float* high) {
  const Floats s = load(scale), least = load(low), most = load(high);
  const Floats near = whole(v / s) * s, above = near < least ? least : near;
  return above > most ? most : above;
}

// One strip of a copy of the block, `strip` numbers a column. Columns come pushed and leave rounded in `values`.
inline void round_strip(const RoundColumns& b, const float* across, const float* drift, int64_t r0, float* work, float* errors, float* values,
                        float* grid) {
  for (int64_t i = 0; i < b.columns; ++i) {
    Floats now[kVectors];
    for (int v = 0; v < kVectors; ++v) now[v] = load(work + i * kStrip + v * kLanes);
    const float *push = across + i * b.columns, *add = drift ? drift + i * b.columns : nullptr;
    for (int64_t k = 0; k < i; ++k)
      for (int v = 0; v < kVectors; ++v) {
        now[v] -= push[k] * load(errors + k * kStrip + v * kLanes);
        if (add) now[v] += add[k] * load(work + k * kStrip + v * kLanes);
      }
    const int64_t group = b.groups[i] * b.rows + r0, count = std::min(kStrip, b.rows - r0);
    const float* given[3] = {b.scale + group, b.low + group, b.high + group};
    for (int j = 0; count < kStrip && j < 3; ++j) {  // the last strip: what is beyond is rounded as its first row
      for (int64_t r = 0; r < kStrip; ++r) grid[j * kStrip + r] = given[j][r < count ? r : 0];
      given[j] = grid + j * kStrip;
    }
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = v * kLanes;
      Floats from = now[v];
      if (i == 0 && b.first) {
        float first[kLanes];
        for (int l = 0; l < kLanes; ++l) first[l] = b.first[r0 + std::min<int64_t>(at + l, count - 1)];
        from = load(first);
      }
      const Floats value = rounded_to(from, given[0] + at, given[1] + at, given[2] + at);
      store(work + i * kStrip + at, now[v]);
      store(values + i * kStrip + at, value);
      store(errors + i * kStrip + at, (now[v] - value) / b.root[i * b.root_stride + i]);
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
