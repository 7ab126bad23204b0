// Which instruction set the kernels use, and what each has: every one is compiled in files of its own, with flags of its own.
#pragma once

#include "common.h"

namespace ck {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2 };

Isa best_isa();       // of those that were built, the widest that this CPU runs
bool has_tiles();      // whether oneDNN multiplies tiles of bf16 (AMX) on this CPU
Isa current_isa();    // the best one, unless another was chosen
bool choose_isa(Isa); // false where it was not built or this CPU does not run it

namespace portable {
void rms_norm(const RmsNorm&);
void pointwise(const Pointwise&);
void attend(const Attention&, const Parallel&);
void round_columns(const RoundColumns&, const Parallel&);
void dequantize_rows(const PackedWeight&, int64_t, int64_t, float*);
void dequantize_rows(const SparseWeight&, int64_t, int64_t, float*);
void dequantize_rows(const BlockWeight&, int64_t, int64_t, float*);
}  // namespace portable

namespace avx2 {
void rms_norm(const RmsNorm&);
void pointwise(const Pointwise&);
void attend(const Attention&, const Parallel&);
void round_columns(const RoundColumns&, const Parallel&);
bool packed_linear(const Input&, const PackedWeight&, const Output&, const Parallel&);
bool block_linear(const Input&, const BlockWeight&, const Output&, const Parallel&);
bool dense_linear(const Input&, const DenseWeight&, const Output&, const Parallel&);
bool dequantize_rows(const PackedWeight&, int64_t, int64_t, float*);
void dequantize_rows(const BlockWeight&, int64_t, int64_t, float*);
}  // namespace avx2

namespace avx512 {
void rms_norm(const RmsNorm&);
void pointwise(const Pointwise&);
void attend(const Attention&, const Parallel&);
void round_columns(const RoundColumns&, const Parallel&);
bool packed_linear(const Input&, const PackedWeight&, const Output&, const Parallel&);
bool packed_integers(const Input&, const Product*, int64_t, const Parallel&);
bool interleaved_products(const Input&, const Product*, int64_t, const Parallel&);
bool interleaved_products(const Input&, const SparseProduct*, int64_t, const Parallel&);
bool pair_products(const Input&, const SparseProduct*, int64_t, const Parallel&);
bool pair_up(const SparseWeight&, Paired&);
void write_out(const SparseWeight&, int64_t block, uint8_t*);
void plain_block(const uint8_t*, int64_t words, uint8_t*);  // [words][16] of 32 bits → [16][words]
bool sparse_integers(const Input&, const SparseWeight&, const Output&, const Parallel&);
bool sparse_linear(const Input&, const SparseWeight&, const Output&, const Parallel&);
bool dense_linear(const Input&, const DenseWeight&, const Output&, const Parallel&);
bool int8_linear(const Input&, const Int8Weight&, const Output&, const Parallel&);
bool attend_prompt(const PromptAttention&, const Parallel&);
bool add_products(const uint16_t*, const uint16_t*, int64_t, int64_t, float*, const Parallel&);
bool block_linear(const Input&, const BlockWeight&, const Output&, const Parallel&);
bool expand_rows(const PackedWeight&, int64_t, int64_t, uint16_t*);
bool expand_rows(const SparseWeight&, int64_t, int64_t, uint16_t*);
bool expand_rows(const BlockWeight&, int64_t, int64_t, uint16_t*);
}  // namespace avx512

}  // namespace ck
