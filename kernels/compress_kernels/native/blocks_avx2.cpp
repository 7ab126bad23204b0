// ggml's block types with AVX2.
#include "blocks.h"
#include "isa.h"

namespace ck::CK_ISA {

bool block_linear(const Input& x, const BlockWeight& w, const Output& y, const Parallel& parallel) {
  if (x.rows > 8) return false;
  return with_type(w.type, [&](auto type) { code_linear(x, BlockRows<decltype(type)>(w), y, parallel); });
}

void dequantize_rows(const BlockWeight& w, int64_t r0, int64_t r1, float* out) {
  with_type(w.type, [&](auto type) {
    write_rows<decltype(type)>(w, r0, r1, out, [](float* to, __m256 v) { _mm256_storeu_ps(to, v); });
  });
}

}  // namespace ck::CK_ISA
