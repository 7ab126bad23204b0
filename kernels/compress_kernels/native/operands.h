// Tensors as the weights that the kernels take.
#pragma once

#include <ATen/core/Tensor.h>

#include "common.h"

namespace ck {

using at::Tensor;
using OptTensor = std::optional<Tensor>;

inline Dtype dtype_of(at::ScalarType t) {
  switch (t) {
    case at::kFloat: return F32;
    case at::kBFloat16: return BF16;
    case at::kHalf: return F16;
    case at::kByte: return U8;
    default: TORCH_CHECK_VALUE(false, "the CPU kernels take float32, bfloat16 and float16, not ", t);
  }
}

inline const uint8_t* bytes(const Tensor& t) { return static_cast<const uint8_t*>(t.const_data_ptr()); }

inline PackedWeight packed_weight(const Tensor& codes, const Tensor& scale, const OptTensor& zero, int64_t bits, int64_t group,
                                  int64_t k, bool interleaved = false) {
  return {bytes(codes), codes.size(1) * codes.element_size(), codes.size(0), k, int(bits), scale.const_data_ptr(),
          dtype_of(scale.scalar_type()), zero ? bytes(*zero) : nullptr, group, scale.size(1), scale.size(0) == 1, interleaved};
}

inline PackedWeight nf4_weight(const Tensor& codes, const Tensor& absmax, const Tensor& table) {
  const int64_t k = 2 * codes.size(1);
  return {bytes(codes), codes.size(1), codes.size(0), k, 4, absmax.const_data_ptr(), dtype_of(absmax.scalar_type()), nullptr,
          k / absmax.size(1), absmax.size(1), false, false, table.const_data_ptr<float>()};
}

inline SparseWeight sparse_weight(const Tensor& mask, const Tensor& start, const Tensor& values, int64_t bits, const OptTensor& scale,
                                  const OptTensor& zero, int64_t group, int64_t k, bool interleaved = false) {
  return {bytes(mask), mask.size(1), mask.size(0), k, start.const_data_ptr<int64_t>(), bytes(values),
          int64_t(values.nbytes()), int(bits), scale ? scale->const_data_ptr() : nullptr,
          scale ? dtype_of(scale->scalar_type()) : F32, zero ? bytes(*zero) : nullptr, group,
          scale ? scale->size(1) : 1, scale && scale->size(0) == 1, interleaved};
}

inline BlockWeight block_weight(const Tensor& packed, int64_t type, int64_t k) {
  return {bytes(packed), packed.size(1), packed.size(0), k, int(type)};
}

}  // namespace ck
