// What one decoding step needs beside its products: the norm of a row, and attention of one query for each head over a cache.
// Compiled once for each instruction set; CK_ISA names the namespace. The vectors are the compiler's own, so that the same lines
// serve them all.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common.h"
#include "floats.h"

namespace ck::CK_ISA {
namespace step {

template <typename T>
float dot(const float* a, const T* b, int64_t count) {
  Floats total0 = {}, total1 = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    total0 += load(a + i) * load(b + i);
    total1 += load(a + i + kLanes) * load(b + i + kLanes);
  }
  for (; i + kLanes <= count; i += kLanes) total0 += load(a + i) * load(b + i);
  float total = sum(total0 + total1);
  for (; i < count; ++i) total += a[i] * widen(b[i]);
  return total;
}

// result[i] = Σ weights[t] · values[t][i]
template <typename T>
void weigh(const float* weights, const T* values, int64_t count, int64_t width, float* result) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    Floats total[4] = {};
    for (int64_t t = 0; t < count; ++t)
      for (int j = 0; j < 4; ++j) total[j] += weights[t] * load(values + t * width + i + j * kLanes);
    for (int j = 0; j < 4; ++j) store(result + i + j * kLanes, total[j]);
  }
  for (; i + kLanes <= width; i += kLanes) {
    Floats total = {};
    for (int64_t t = 0; t < count; ++t) total += weights[t] * load(values + t * width + i);
    store(result + i, total);
  }
  for (; i < width; ++i) {
    result[i] = 0.f;
    for (int64_t t = 0; t < count; ++t) result[i] += weights[t] * widen(values[t * width + i]);
  }
}

// y = x / sqrt(mean(x²) + eps), then the weight: before the rounding to T, or after it as most models have it.
template <typename T>
void rms_norm(const RmsNorm& n) {
  const T* weight = static_cast<const T*>(n.weight);
  for (int64_t r = 0; r < n.rows; ++r) {
    const T* x = static_cast<const T*>(n.x) + r * n.width;
    T* y = static_cast<T*>(n.y) + r * n.width;
    Floats squares = {};
    int64_t i = 0;
    for (; i + kLanes <= n.width; i += kLanes) squares += load(x + i) * load(x + i);
    float total = sum(squares);
    for (; i < n.width; ++i) total += widen(x[i]) * widen(x[i]);
    const float factor = 1.f / std::sqrt(total / float(n.width) + n.eps);
    for (i = 0; i + kLanes <= n.width; i += kLanes) {
      Floats value = load(x + i) * factor;
      if (n.round_first) value = rounded(value, T{});
      store(y + i, weight ? value * (load(weight + i) + n.offset) : value);
    }
    for (; i < n.width; ++i) {
      float value = widen(x[i]) * factor;
      if (n.round_first) {
        narrow(value, y[i]);
        value = widen(y[i]);
      }
      narrow(weight ? value * (widen(weight[i]) + n.offset) : value, y[i]);
    }
  }
}

// Scores of positions t … t + kLanes − 1, scale and cap applied.
template <typename T>
Floats scores_of(const Attention& a, const float* query, const T* keys) {
  float score[kLanes];
  for (int t = 0; t < kLanes; ++t) score[t] = dot(query, keys + t * a.width, a.width);
  Floats v = load(score);
  if (a.softcap > 0.f) {  // tanh(x) = 1 − 2 / (e^2x + 1)
    const Floats twice = exp(v * (2.f / a.softcap));
    v = a.softcap * (1.f - 2.f / (twice + 1.f));
  }
  return v;
}

// One query for each head: softmax(scale · q Kᵀ) V over the positions [first, last) of the cache, in fp32.
template <typename T>
void attend(const Attention& a, int64_t h0, int64_t h1) {
  const int64_t group = a.heads / a.kv_heads, count = a.last - a.first, padded = (count + kLanes - 1) / kLanes * kLanes;
  std::vector<float> query(a.width), scores(padded), result(a.value_width);
  for (int64_t h = h0; h < h1; ++h) {
    const int64_t batch = h / a.heads, kv = batch * a.kv_heads + h % a.heads / group;
    const T* q = static_cast<const T*>(a.query) + h * a.width;
    const T* keys = static_cast<const T*>(a.keys) + (kv * a.capacity + a.first) * a.width;
    const T* values = static_cast<const T*>(a.values) + (kv * a.capacity + a.first) * a.value_width;
    for (int64_t i = 0; i < a.width; ++i) query[i] = widen(q[i]) * a.scale;
    std::fill(scores.begin() + std::max<int64_t>(padded - kLanes, 0), scores.end(), -std::numeric_limits<float>::infinity());
    Floats most = all(-std::numeric_limits<float>::infinity());
    int64_t t = 0;
    for (; t + kLanes <= count; t += kLanes) {
      const Floats v = scores_of(a, query.data(), keys + t * a.width);
      store(scores.data() + t, v);
      most = v > most ? v : most;
    }
    float highest = most[0];
    for (int i = 1; i < kLanes; ++i) highest = std::max(highest, most[i]);
    for (; t < count; ++t) {
      float score = dot(query.data(), keys + t * a.width, a.width);
      if (a.softcap > 0.f) score = a.softcap * std::tanh(score / a.softcap);
      scores[t] = score;
      highest = std::max(highest, score);
    }
    Floats total = {};
    for (t = 0; t < padded; t += kLanes) {
      Floats weight = exp(load(scores.data() + t) - highest);
      if (t + kLanes > count)
        for (int i = 0; i < kLanes; ++i) weight[i] = t + i < count ? weight[i] : 0.f;
      store(scores.data() + t, weight);
      total += weight;
    }
    T* out = static_cast<T*>(a.out) + h * a.value_width;
    const float norm = 1.f / sum(total);
    weigh(scores.data(), values, count, a.value_width, result.data());
    for (int64_t i = 0; i < a.value_width; ++i) narrow(result[i] * norm, out[i]);
  }
}

template <Pointwise::Kind K>
Floats apply(const Floats& a, const Floats& b) {
  switch (K) {
    case Pointwise::add: return a + b;
    case Pointwise::sub: return a - b;
    case Pointwise::mul: return a * b;
    case Pointwise::neg: return -a;
    case Pointwise::silu: return a / (1.f + exp(-a));
    case Pointwise::gelu: return a / (1.f + exp(-1.5957691216f * (a + 0.044715f * a * a * a)));
    default: return a;
  }
}

template <typename T>
Floats take(const T* p, int64_t stride, int count) {
  if (stride == 1 && count == kLanes) return load(p);
  Floats v = {};
  for (int i = 0; i < count; ++i) v[i] = widen(p[i * stride]);
  return v;
}

template <typename T>
void put(T* p, int64_t stride, int count, const Floats& v) {
  if (stride == 1 && count == kLanes) return store(p, v);
  for (int i = 0; i < count; ++i) narrow(v[i], p[i * stride]);
}

template <Pointwise::Kind K, typename T>
void pointwise(const Pointwise& w) {
  const auto& n = w.sizes;
  for (int64_t i = 0; i < n[0]; ++i)
    for (int64_t j = 0; j < n[1]; ++j)
      for (int64_t k = 0; k < n[2]; ++k) {
        const auto at = [&](const int64_t (&s)[4]) { return i * s[0] + j * s[1] + k * s[2]; };
        const T* a = static_cast<const T*>(w.a) + at(w.a_strides);
        const T* b = w.b ? static_cast<const T*>(w.b) + at(w.b_strides) : nullptr;
        T* y = static_cast<T*>(w.y) + at(w.y_strides);
        for (int64_t l = 0; l < n[3]; l += kLanes) {
          const int count = int(std::min<int64_t>(kLanes, n[3] - l));
          const Floats right = b ? take(b + l * w.b_strides[3], w.b_strides[3], count) : all(w.scalar);
          put(y + l * w.y_strides[3], w.y_strides[3], count, apply<K>(take(a + l * w.a_strides[3], w.a_strides[3], count), right));
        }
      }
}

template <typename T>
void pointwise(const Pointwise& w) {
  switch (w.kind) {
    case Pointwise::copy: return pointwise<Pointwise::copy, T>(w);
    case Pointwise::add: return pointwise<Pointwise::add, T>(w);
    case Pointwise::sub: return pointwise<Pointwise::sub, T>(w);
    case Pointwise::mul: return pointwise<Pointwise::mul, T>(w);
    case Pointwise::neg: return pointwise<Pointwise::neg, T>(w);
    case Pointwise::silu: return pointwise<Pointwise::silu, T>(w);
    case Pointwise::gelu: return pointwise<Pointwise::gelu, T>(w);
  }
}

}  // namespace step

void rms_norm(const RmsNorm& n) { n.dtype == BF16 ? step::rms_norm<step::Bf16>(n) : step::rms_norm<float>(n); }

void attend(const Attention& a, const Parallel& parallel) {
  const int64_t heads = a.batch * a.heads;
  // A short cache is read by one thread before another has woken up.
  const bool alone = heads * (a.last - a.first) * a.width < (1 << 18);
  const auto part = [&](int64_t h0, int64_t h1) {
    a.dtype == BF16 ? step::attend<step::Bf16>(a, h0, h1) : step::attend<float>(a, h0, h1);
  };
  parallel(alone ? 1 : heads, [&](int64_t h0, int64_t h1) { alone ? part(0, heads) : part(h0, h1); });
}

void pointwise(const Pointwise& w) { w.dtype == BF16 ? step::pointwise<step::Bf16>(w) : step::pointwise<float>(w); }

}  // namespace ck::CK_ISA
