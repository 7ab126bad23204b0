// What AVX-512 has, in the namespace WIDE: isa.h includes this once for each of its two.
namespace WIDE {
void rms_norm(const RmsNorm&);
void pointwise(const Pointwise&);
void attend(const Attention&, const Parallel&);
void round_columns(const RoundColumns&, const Parallel&);
void rounding_errors(const RoundingErrors&, const Parallel&);
void search_scales(const ScaleSearch&, const Parallel&);
bool packed_linear(const Input&, const PackedWeight&, const Output&, const Parallel&);
bool packed_integers(const Input&, const Product*, int64_t, const Parallel&);
bool interleaved_products(const Input&, const Product*, int64_t, const Parallel&);
bool interleaved_products(const Input&, const SparseProduct*, int64_t, const Parallel&);
bool pair_products(const Input&, const SparseProduct*, int64_t, const Parallel&);
bool pair_up(const SparseWeight&, Paired&);
void write_out(const SparseWeight&, int64_t block, uint8_t*);
bool plain_block(const uint8_t*, int64_t words, uint8_t*);
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
}  // namespace WIDE
