// What one decoding step needs beside its products: the norm of a row, and attention of one query for each head over a cache.
// Included by files that are compiled for one instruction set each; CK_ISA names the namespace. The vectors are the compiler's
// own, so that the same lines serve every instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common.h"

namespace ck::CK_ISA {
namespace step {

constexpr int kLanes = 16;
typedef float Floats __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes), aligned(2)));

struct Bf16 { uint16_t bits; };

inline float widen(Bf16 v) {
  const uint32_t bits = uint32_t(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline float widen(float v) { return v; }

inline void narrow(float f, float& out) { out = f; }
inline void narrow(float f, Bf16& out) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  out.bits = nan ? uint16_t(bits >> 16) | 0x40 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Floats load(const Bf16* p) {
  Halves halves;
  std::memcpy(&halves, p, sizeof halves);
  const Words words = __builtin_convertvector(halves, Words) << 16;
  Floats v;
  std::memcpy(&v, &words, sizeof v);
  return v;
}

inline float sum(const Floats& v) {
  float part[kLanes];
  std::memcpy(part, &v, sizeof v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  return part[0];
}

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

template <typename T>
void add_scaled(float* to, float scale, const T* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Floats v = load(to + i) + scale * load(from + i);
    std::memcpy(to + i, &v, sizeof v);
  }
  for (; i < count; ++i) to[i] += scale * widen(from[i]);
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
    for (i = 0; i < n.width; ++i) {
      float value = widen(x[i]) * factor;
      const float scale = weight ? widen(weight[i]) + n.offset : 1.f;
      if (n.round_first) {
        narrow(value, y[i]);
        value = widen(y[i]);
      }
      narrow(value * scale, y[i]);
    }
  }
}

// One query for each head: softmax(scale · q Kᵀ) V over the positions [first, last) of the cache, in fp32.
template <typename T>
void attend(const Attention& a, int64_t h0, int64_t h1) {
  const int64_t group = a.heads / a.kv_heads, count = a.last - a.first;
  std::vector<float> query(a.width), scores(count), result(a.value_width);
  for (int64_t h = h0; h < h1; ++h) {
    const int64_t batch = h / a.heads, kv = batch * a.kv_heads + h % a.heads / group;
    const T* q = static_cast<const T*>(a.query) + h * a.width;
    const T* keys = static_cast<const T*>(a.keys) + (kv * a.capacity + a.first) * a.width;
    const T* values = static_cast<const T*>(a.values) + (kv * a.capacity + a.first) * a.value_width;
    for (int64_t i = 0; i < a.width; ++i) query[i] = widen(q[i]) * a.scale;
    float highest = -std::numeric_limits<float>::infinity();
    for (int64_t t = 0; t < count; ++t) {
      float score = dot(query.data(), keys + t * a.width, a.width);
      if (a.softcap > 0.f) score = a.softcap * std::tanh(score / a.softcap);
      scores[t] = score;
      highest = std::max(highest, score);
    }
    std::fill(result.begin(), result.end(), 0.f);
    float total = 0.f;
    for (int64_t t = 0; t < count; ++t) {
      const float weight = std::exp(scores[t] - highest);
      total += weight;
      add_scaled(result.data(), weight, values + t * a.value_width, a.value_width);
    }
    T* out = static_cast<T*>(a.out) + h * a.value_width;
    for (int64_t i = 0; i < a.value_width; ++i) narrow(result[i] / total, out[i]);
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
  alone ? part(0, heads) : parallel(heads, part);
}

}  // namespace ck::CK_ISA
