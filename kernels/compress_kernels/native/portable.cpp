// What every CPU can do: rows of packed weights written out as floats, for a dense product a piece at a time.
#include <algorithm>
#include <cstring>

#include "common.h"

namespace ck {
namespace {

float as_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) return as_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  const float f = as_float(magnitude << 13) * as_float(0x77800000);  // 2^112: the difference of the exponents' biases
  return sign ? -f : f;
}

float load(const void* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case BF16: return as_float(uint32_t(static_cast<const uint16_t*>(data)[i]) << 16);
    case F16: return half_to_float(static_cast<const uint16_t*>(data)[i]);
    case U8: return float(static_cast<const uint8_t*>(data)[i]);
    default: return static_cast<const float*>(data)[i];
  }
}

inline uint32_t code_at(const uint8_t* stream, int64_t bit, int bits) {
  uint32_t window = stream[bit >> 3];
  if ((bit & 7) + bits > 8) window |= uint32_t(stream[(bit >> 3) + 1]) << 8;
  return (window >> (bit & 7)) & ((1u << bits) - 1);
}

}  // namespace

void dequantize_rows(const PackedWeight& w, int64_t r0, int64_t r1, float* out) {
  for (int64_t r = r0; r < r1; ++r) {
    const uint8_t* codes = w.codes + r * w.row_bytes;
    const int64_t group = w.groups == 1 ? w.k : w.group;
    for (int64_t g = 0; g < w.groups; ++g) {
      const int64_t at = (w.per_tensor ? 0 : r) * w.groups + g;
      const float scale = load(w.scale, w.scale_dtype, at);
      const float zero = w.zero ? float(w.zero[at]) : float(1 << (w.bits - 1));
      for (int64_t k = g * group; k < std::min((g + 1) * group, w.k); ++k)
        out[(r - r0) * w.k + k] = w.table ? w.table[code_at(codes, (k ^ 1) * 4, 4)] * scale
                                          : (float(code_at(codes, k * w.bits, w.bits)) - zero) * scale;
    }
  }
}

void dequantize_rows(const SparseWeight& w, int64_t r0, int64_t r1, float* out) {
  for (int64_t r = r0; r < r1; ++r) {
    int64_t position = w.start[r];
    const int64_t group = w.groups == 1 ? w.k : w.group;
    for (int64_t k = 0; k < w.k; ++k) {
      float value = 0.f;
      if (w.mask[r * w.mask_bytes + k / 8] >> (k % 8) & 1) {
        if (w.bits == 16) {
          value = load(w.values, BF16, position / 16);
        } else {
          const int64_t at = (w.per_tensor ? 0 : r) * w.groups + k / group;
          const float zero = w.zero ? float(w.zero[at]) : float(1 << (w.bits - 1));
          value = (float(code_at(w.values, position, w.bits)) - zero) * load(w.scale, w.scale_dtype, at);
        }
        position += w.bits;
      }
      out[(r - r0) * w.k + k] = value;
    }
  }
}

#ifndef __AVX512BF16__
bool packed_linear(const Input&, const PackedWeight&, const Output&, const Parallel&) { return false; }
bool sparse_linear(const Input&, const SparseWeight&, const Output&, const Parallel&) { return false; }
bool dense_linear(const Input&, const DenseWeight&, const Output&, const Parallel&) { return false; }
bool int8_linear(const Input&, const Int8Weight&, const Output&, const Parallel&) { return false; }
bool expand_rows(const PackedWeight&, int64_t, int64_t, uint16_t*) { return false; }
bool expand_rows(const SparseWeight&, int64_t, int64_t, uint16_t*) { return false; }
#endif

}  // namespace ck
