// ggml's block types with VNNI.
#include "bf16.h"
#include "blocks.h"
#include "isa.h"

namespace ck::CK_ISA {

bool block_linear(const Input& x, const BlockWeight& w, const Output& y, const Parallel& parallel) {
  if (x.rows > 8) return false;
  return with_type(w.type, [&](auto type) { code_linear(x, BlockRows<decltype(type)>(w), y, parallel); });
}

bool expand_rows(const BlockWeight& w, int64_t r0, int64_t r1, uint16_t* out) {
  return with_type(w.type, [&](auto type) {
    write_rows<decltype(type)>(w, r0, r1, out, [](uint16_t* to, __m256 v) {
      _mm_storeu_si128((__m128i*)to, to_bf16(v));
    });
  });
}

}  // namespace ck::CK_ISA
