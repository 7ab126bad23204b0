// What nearest rounding costs under several grids: for every group of values and every trial of its scale and zero point the weighted
// sum of squared errors. Compiled once for each instruction set; CK_ISA names the namespace.
#include <algorithm>
#include <vector>

#include "common.h"
#include "floats.h"

namespace ck::CK_ISA {
namespace {

constexpr int kWide = step::kLanes;
constexpr int kSums = 4;  // sums that do not wait for each other
constexpr int64_t kUnit = kSums * kWide;
using Lanes = step::Floats;

inline Lanes lanes(const float* p) { return step::load(p); }

// A group of values with their costs, whole units of them: what is added costs nothing.
struct Group {
  std::vector<float> values, costs;
  explicit Group(int64_t width) : values(ceil_div(width, kUnit) * kUnit), costs(values.size()) {}
  void take(const RoundingErrors& e, int64_t g) {
    std::copy_n(e.values + g * e.width, e.width, values.data());
    std::copy_n(e.costs + g % e.cost_rows * e.width, e.width, costs.data());
  }
};

float error_of(const Group& group, float scale, float zero, float top) {
  const float inverse = 1.f / scale;
  Lanes total[kSums] = {};
  for (size_t i = 0; i < group.values.size(); i += kUnit)
    for (int j = 0; j < kSums; ++j) {
      const Lanes value = lanes(group.values.data() + i + j * kWide);
      Lanes code = value * inverse + zero;
      code = code > 0.f ? code : Lanes{};
      code = code < top ? code : Lanes{} + top;
      code = (code + 12582912.f) - 12582912.f;  // the nearest whole number, halves to even
      const Lanes error = (code - zero) * scale - value;
      total[j] += error * error * lanes(group.costs.data() + i + j * kWide);
    }
  const Lanes both = (total[0] + total[1]) + (total[2] + total[3]);
  float sum = 0.f;
  for (int l = 0; l < kWide; ++l) sum += both[l];
  return sum;
}

}  // namespace

void rounding_errors(const RoundingErrors& e, const Parallel& parallel) {
  parallel(e.groups * e.trials, [&](int64_t first, int64_t last) {
    Group group(e.width);
    int64_t taken = -1;
    for (int64_t i = first; i < last; ++i) {
      const int64_t g = i / e.trials, t = i % e.trials;
      if (g != taken) group.take(e, taken = g);
      e.errors[t * e.groups + g] = error_of(group, e.scale[t * e.groups + g], e.zero[t * e.groups + g], e.top);
    }
  });
}

}  // namespace ck::CK_ISA
