// The scale and the zero point of every group that lose least by nearest rounding to (code − zero) · scale, weighted by the costs of
// the values. Compiled once for each instruction set; CK_ISA names the namespace. Several trials of one group are measured at
// once: a lane is a trial, and a value is read once for all of them.
#include <algorithm>
#include <cmath>
#include <vector>

#include "common.h"
#include "floats.h"

namespace ck::CK_ISA {
namespace {

constexpr int kWide = step::kLanes;
using Lanes = step::Floats;

inline Lanes whole(const Lanes& v) { return (v + 12582912.f) - 12582912.f; }  // the nearest, halves to even
inline float whole(float v) { return std::nearbyint(v); }

inline Lanes codes_of(const Lanes& value, const Lanes& inverse, const Lanes& zero, float top) {
  Lanes code = value * inverse + zero;
  code = code > 0.f ? code : Lanes{};
  return whole(code < top ? code : Lanes{} + top);
}

struct Trials {  // of one group, then what each costs
  std::vector<float> scale, zero, error;
  void clear() { scale.clear(), zero.clear(); }
  void add(float s, float z) { scale.push_back(s), zero.push_back(z); }
};

struct Group {  // padded to whole vectors with values that cost nothing
  std::vector<float> values, costs;
  int64_t width;
  explicit Group(int64_t count) : values(ceil_div(count, kWide) * kWide), costs(values.size()), width(count) {}
  void take(const ScaleSearch& s, int64_t g) {
    std::copy_n(s.values + g * width, width, values.data());
    std::copy_n(s.costs + g % s.cost_rows * width, width, costs.data());
  }
};

inline Lanes lanes(const float* p) { return step::load(p); }
inline double sum(const Lanes& v) {
  double total = 0;
  for (int l = 0; l < kWide; ++l) total += v[l];
  return total;
}

// Trials are made whole vectors by repeating the last.
void measure(const Group& g, float top, Trials& t) {
  const size_t count = t.scale.size();
  while (t.scale.size() % kWide) t.add(t.scale.back(), t.zero.back());
  t.error.resize(t.scale.size());
  for (size_t at = 0; at < count; at += kWide) {
    const Lanes scale = lanes(t.scale.data() + at), zero = lanes(t.zero.data() + at);
    const Lanes inverse = 1.f / scale;
    Lanes total[2] = {};
    for (int64_t i = 0; i < g.width; ++i) {
      const Lanes value = Lanes{} + g.values[i], error = (codes_of(value, inverse, zero, top) - zero) * scale - value;
      total[i & 1] += error * error * g.costs[i];
    }
    step::store(t.error.data() + at, total[0] + total[1]);
  }
}

// The first of least error, if that is less than the best so far.
struct Best {
  float scale = 1.f, zero = 0.f, error = INFINITY;
  bool take(const Trials& t) {
    const size_t i = std::min_element(t.error.begin(), t.error.end()) - t.error.begin();
    if (!(t.error[i] < error)) return false;
    scale = t.scale[i], zero = t.zero[i], error = t.error[i];
    return true;
  }
};

// The scale as a format holds it, never 0.
float stored(const ScaleSearch& s, float scale) {
  float size = std::fabs(scale);
  if (s.scale_dtype == BF16) {
    step::Bf16 half;
    step::narrow(size, half);
    size = step::widen(half);
  } else if (s.scale_dtype == F16) {  // ten bits of mantissa, steps of 2^-24 below 2^-14
    const int exponent = std::max(size > 0.f ? std::ilogb(size) : -24, -14);
    const float step = std::ldexp(1.f, exponent - 10);
    size = std::nearbyint(size / step) * step;
    if (size > 65504.f) size = INFINITY;
  }
  size = std::max(size, s.smallest);
  return scale < 0.f ? -size : size;
}

float allowed(const ScaleSearch& s, float zero) {
  if (s.symmetric) return s.middle;
  return s.whole ? std::clamp(whole(zero), s.lowest_zero, s.top) : zero;
}

void everywhere(const ScaleSearch& s, const Group& g, Trials& t) {
  float low = g.values[0], high = low;
  for (int64_t i = 1; i < g.width; ++i) low = std::min(low, g.values[i]), high = std::max(high, g.values[i]);
  float range;
  if (s.symmetric && s.is_signed) {
    range = (high > -low ? -high : -low) * (s.top / s.middle);
  } else if (s.symmetric) {
    const float reach = std::max({-low / s.middle, high / (s.top - s.middle), 0.f});
    range = reach * s.top, low = -reach * s.middle, high = reach * s.top;
  } else {
    if (s.whole) low = std::min(low, 0.f), high = std::max(high, 0.f);
    range = high - low;
  }
  if (range == 0.f) range = 1.f;
  for (int r = 0; r < s.ratio_count; ++r) {
    const float scale = stored(s, range * (s.ratios[r] / s.top)), left = -low / scale, right = s.top - high / scale;
    const int places = s.ratios[r] >= 1.f || s.symmetric ? 1 : s.places;
    for (int p = 0; p < places; ++p) t.add(scale, allowed(s, left + (right - left) * (places > 1 ? float(p) / float(places - 1) : .5f)));
  }
}

void around(const ScaleSearch& s, float scale, float zero, Trials& t) {
  for (int n = 0; n < s.near_count; ++n)
    for (int move = s.symmetric ? 0 : -1; move <= (s.symmetric ? 0 : 1); ++move) t.add(stored(s, scale * s.near[n]), allowed(s, zero + float(move)));
}

// Weighted least squares of the values on the codes of the best trial so far.
void fit(const ScaleSearch& s, const Group& g, const Best& best, Trials& t) {
  const Lanes inverse = Lanes{} + 1.f / best.scale, zero = Lanes{} + best.zero;
  Lanes costs = {}, codes = {}, values = {}, squares = {}, products = {};
  for (size_t i = 0; i < g.values.size(); i += kWide) {
    const Lanes cost = lanes(g.costs.data() + i), value = lanes(g.values.data() + i);
    const Lanes code = codes_of(value, inverse, zero, s.top) - zero;
    costs += cost, codes += cost * code, values += cost * value;
    squares += cost * code * code, products += cost * code * value;
  }
  const double total = sum(costs), mean_code = sum(codes) / total, mean = sum(values) / total;
  double square = sum(squares), product = sum(products);
  if (!s.symmetric && !s.whole) square -= total * mean_code * mean_code, product -= total * mean_code * mean;
  const float slope = square > 0 ? float(product / square) : 0.f, scale = stored(s, slope * best.scale > 0.f ? slope : best.scale);
  t.add(scale, allowed(s, float(mean_code + best.zero - mean / scale)));
}

}  // namespace

void search_scales(const ScaleSearch& s, const Parallel& parallel) {
  parallel(s.groups, [&](int64_t first, int64_t last) {
    Trials trials;
    Group group(s.width);
    for (int64_t i = first; i < last; ++i) {
      group.take(s, i);
      Best best;
      trials.clear();
      if (s.begun) {
        around(s, s.scale[i], s.zero[i], trials);
      } else {
        everywhere(s, group, trials);
      }
      measure(group, s.top, trials);
      best.take(trials);
      if (!s.begun) {
        trials.clear();
        for (int n = 0; n < s.near_count; ++n) trials.add(stored(s, best.scale * s.near[n]), best.zero);
        measure(group, s.top, trials);
        best.take(trials);
      }
      for (int round = 0; round < s.fits; ++round) {
        trials.clear();
        fit(s, group, best, trials);
        measure(group, s.top, trials);
        if (!best.take(trials)) break;
      }
      s.scale[i] = best.scale, s.zero[i] = best.zero;
    }
  });
}

}  // namespace ck::CK_ISA
