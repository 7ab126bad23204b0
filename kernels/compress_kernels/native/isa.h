// Which instruction set the kernels use, and what each has: every one is compiled in files of its own, with flags of its own.
#pragma once

#include "common.h"

namespace ck {

// avx512: with VBMI2 and VNNI, which every CPU with AVX-512 since Ice Lake and Zen 4 has; some multiply bf16 as well.
enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

Isa best_isa();       // of those that were built, the widest that this CPU runs
bool has_tiles();      // whether oneDNN multiplies tiles of bf16 (AMX) on this CPU
Isa current_isa();    // the best one, unless another was chosen
bool choose_isa(Isa); // false where it was not built or this CPU does not run it
inline bool multiplies_bf16() { return current_isa() == Isa::avx512_bf16; }  // by instructions of its own

// What the headers of portable code want of the instruction set in use.
bool plain_block(const uint8_t*, int64_t words, uint8_t*);  // [words][16] of 32 bits → [16][words]; false: no vectors
void write_out(const SparseWeight&, int64_t block, uint8_t*);  // all codes of a block of 32 rows of pairs, as interleaved words [2][k / 8][16]

namespace portable {
void rms_norm(const RmsNorm&);
void pointwise(const Pointwise&);
void attend(const Attention&, const Parallel&);
void round_columns(const RoundColumns&, const Parallel&);
void rounding_errors(const RoundingErrors&, const Parallel&);
void search_scales(const ScaleSearch&, const Parallel&);
void dequantize_rows(const PackedWeight&, int64_t, int64_t, float*);
void dequantize_rows(const SparseWeight&, int64_t, int64_t, float*);
void dequantize_rows(const BlockWeight&, int64_t, int64_t, float*);
}  // namespace portable

namespace avx2 {
void rms_norm(const RmsNorm&);
void pointwise(const Pointwise&);
void attend(const Attention&, const Parallel&);
void round_columns(const RoundColumns&, const Parallel&);
void rounding_errors(const RoundingErrors&, const Parallel&);
void search_scales(const ScaleSearch&, const Parallel&);
bool packed_linear(const Input&, const PackedWeight&, const Output&, const Parallel&);
bool block_linear(const Input&, const BlockWeight&, const Output&, const Parallel&);
bool dense_linear(const Input&, const DenseWeight&, const Output&, const Parallel&);
bool dequantize_rows(const PackedWeight&, int64_t, int64_t, float*);
void dequantize_rows(const BlockWeight&, int64_t, int64_t, float*);
}  // namespace avx2

#define WIDE avx512
#include "wide.h"
#undef WIDE
#define WIDE avx512_bf16
#include "wide.h"
#undef WIDE

}  // namespace ck
