// Numbers one at a time, for the files that are compiled with vector flags. CK_ISA names the namespace, so that no function
// compiled for one instruction set is ever taken in place of another's.
#pragma once

#include <immintrin.h>

#include <cstdlib>
#include <cstring>

#include "common.h"

namespace ck::CK_ISA {

inline float bf16_to_float(uint16_t v) {
  uint32_t bits = uint32_t(v) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline uint16_t float_to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16) | 0x40;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float load_scalar(const void* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case BF16: return bf16_to_float(static_cast<const uint16_t*>(data)[i]);
    case F16: return _cvtsh_ss(static_cast<const uint16_t*>(data)[i]);
    case U8: return float(static_cast<const uint8_t*>(data)[i]);
    default: return static_cast<const float*>(data)[i];
  }
}

inline void store_scalar(const Output& y, int64_t m, int64_t n, float v) {
  const int64_t i = m * y.n + n;
  if (y.bias) v += y.bias[n];
  if (y.residual) v += y.residual[i];
  if (y.dtype == BF16)
    static_cast<uint16_t*>(y.data)[i] = float_to_bf16(v);
  else if (y.dtype == F16)
    static_cast<uint16_t*>(y.data)[i] = _cvtss_sh(v, 0);
  else
    static_cast<float*>(y.data)[i] = v;
}

template <typename T>
struct Buffer {  // 64-byte aligned, not initialised
  explicit Buffer(int64_t count) : data(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64 + 64))) {}
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  T* data;
};

}  // namespace ck::CK_ISA
