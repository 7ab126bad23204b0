// What every CPU can do: rows of packed weights written out as floats, for a dense product a piece at a time.
#include <algorithm>

#include "ggml.h"
#include "isa.h"

namespace ck {
namespace {

float load(const void* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case BF16: return bits_to_float(uint32_t(static_cast<const uint16_t*>(data)[i]) << 16);
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

namespace portable {

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

void dequantize_rows(const BlockWeight& w, int64_t r0, int64_t r1, float* out) {
  with_type(w.type, [&](auto type) {
    using T = decltype(type);
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t b = 0; b < w.k / T::kColumns; ++b, out += T::kColumns) {
        const uint8_t* block = w.data + r * w.row_bytes + b * T::kBytes;
        float step[16], low[16];
        T::steps(block, step, low);
        // Exact products, so that there is one rounding as in ggml.
        for (int i = 0; i < T::kColumns; ++i)
          out[i] = T::kZero ? (float(T::code(block, i)) - T::kZero) * step[i / T::kGroup]
                            : float(T::code(block, i)) * step[i / T::kGroup] + low[i / T::kGroup];
      }
  });
}

}  // namespace portable
}  // namespace ck
