// Shared parts of the CPU kernels: no torch in here, so that they compile in seconds.
//
// Every format gives the same two things: a dot product of a few packed rows with a few rows of x (decode), and a way to
// write packed rows out as bf16 in the format's own order of k (prefill, see gemm.h). x is put in that order first,
// which costs nothing beside the weights and saves every shuffle on the weights' side.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace ck {

using Range = std::function<void(int64_t, int64_t)>;
using Parallel = std::function<void(int64_t, const Range&)>;

enum Dtype : int { F32 = 0, BF16 = 1, F16 = 2, U8 = 3 };

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Input {       // x [rows, k], contiguous
  const void* data;
  Dtype dtype;
  int64_t rows, k;
};

struct Output {      // y [rows, n], contiguous; y = product + bias + residual
  void* data;
  Dtype dtype;
  int64_t n;
  const float* bias;    // [n] or null
  const float* residual;  // [rows, n] or null
};

struct PackedWeight {   // b-bit codes, row-major, low bits first (compressed-tensors pack-quantized)
  const uint8_t* codes;
  int64_t row_bytes, n, k;
  int bits;
  const void* scale;    // [n or 1, groups]
  Dtype scale_dtype;
  const uint8_t* zero;  // [n or 1, groups] or null: then 2^(bits-1)
  int64_t group, groups;
  bool per_tensor;
  bool interleaved = false;  // word j of rows 16b … 16b + 15 lies at [b][j][row]; so do their scales and zero points
  const float* table = nullptr;  // NF4: 16 values in place of code − zero; then the first code of two is in the high half
};

struct Product {        // one of several weights that are multiplied with the same x
  PackedWeight w;
  Output y;
};

struct SparseWeight {   // one bit for each weight, then the kept values in order
  const uint8_t* mask;  // [n, mask_bytes], bit i of a row belongs to column i
  int64_t mask_bytes, n, k;
  const int64_t* start; // [n + 1]: index of each row's first value
  const uint8_t* values;  // bf16 (bits = 16) or b-bit codes in one stream
  int64_t value_bytes;
  int bits;
  const void* scale;    // as in PackedWeight, groups of dense columns
  Dtype scale_dtype;
  const uint8_t* zero;
  int64_t group, groups;
  bool per_tensor;
  // 2:4 with symmetric 4-bit codes: `mask` has the two places of every four columns, two bits each, `values` the codes with their upper
  // bits turned, and word j of rows 16b … 16b + 15 of both lies at [b][j][row]; so do the scales.
  bool interleaved = false;
  // Interleaved without a mask: 4-bit codes of rows r and r + 16 of 32 as the lower and upper halves of bytes. `values` has for every
  // 32 columns of 32 rows eight words of a mask and the bytes that they keep, where one or both of a pair are kept; bit 4 · r + j of
  // word u is column 4u + j of the pair r, a half that is not kept its zero point. `start` has the first byte of every 32 rows.
  bool pairs() const { return interleaved && mask_bytes == 0; }
};

struct Paired {          // what SparseWeight::pairs reads, and
  std::vector<uint8_t> bytes;
  std::vector<int64_t> start;
  std::vector<uint8_t> kept_zeros;  // steps to the next weight that is kept though it has its zero point; 255: 255 and what follows
};

struct SparseProduct {  // as Product
  SparseWeight w;
  Output y;
};

struct DenseWeight {    // bf16 [n, k]
  const uint16_t* data;
  int64_t n, k, stride;
};

struct Int8Weight {     // int8 [n, k]
  const int8_t* data;
  int64_t n, k;
  const void* scale;    // [n] or [1]
  Dtype scale_dtype;
  bool per_tensor;
};

struct BlockWeight {    // rows of blocks of a ggml type, as in a GGUF file
  const uint8_t* data;
  int64_t row_bytes, n, k;
  int type;             // enum ggml_type
};

struct RmsNorm {        // x and y [rows, width], weight [width] or null, all of one dtype: fp32 or bf16
  const void *x, *weight;
  void* y;
  Dtype dtype;
  int64_t rows, width;
  float eps, offset;    // y = x̂ · (weight + offset)
  bool round_first;     // x̂ is rounded to the dtype before it meets the weight
};

struct Attention {      // one query for each head over positions [first, last) of a cache, all of one dtype: fp32 or bf16
  const void *query, *keys, *values;  // [batch, heads, width], [batch, kv_heads, capacity, width] and the same with value_width
  void* out;            // [batch, heads, value_width]
  Dtype dtype;
  int64_t batch, heads, kv_heads, capacity, width, value_width, first, last;
  float scale, softcap; // softcap · tanh(score / softcap) where it is positive
};

struct Heads {          // bf16 [batch, heads, length, width]; strides count numbers, those of the width lie side by side
  const uint16_t* data;
  int64_t batch, head, row;
  const uint16_t* at(int64_t b, int64_t h) const { return data + b * batch + h * head; }
};

struct PromptAttention {  // all queries of a prompt over its keys, up to their own where `causal`
  Heads query, keys, values;
  uint16_t* out;        // [batch, length, heads, value_width]
  int64_t batch, heads, kv_heads, length, width, value_width;
  float scale;          // positive
  bool causal;
};

struct Pointwise {      // y = kind(a, b) of one dtype, fp32 or bf16, computed in fp32; strides count numbers, 0 repeats
  enum Kind { copy, add, sub, mul, neg, silu, gelu } kind;  // gelu: its approximation by tanh
  void* y;
  const void *a, *b;    // b null: the scalar
  float scalar;
  Dtype dtype;
  int64_t sizes[4], y_strides[4], a_strides[4], b_strides[4];
};

struct RoundColumns {   // a block [columns, rows] of a weight, transposed, all fp32
  float* block;         // comes as it is, leaves with the errors of the columns before pushed onto each
  float *values, *errors;  // of the same shape: the rounded columns, and (column − value) / root[i][i]
  int64_t columns, rows;
  const float* root;    // upper triangle: column k takes −root[i][k] · error i for every i before it
  int64_t root_stride;
  const float *scale, *low, *high;  // [groups, rows]: the nearest multiple of scale, no less than low and no more than high
  const int64_t* groups;  // [columns]: the group of each
  const float* first;   // [rows] or null: rounded in the place of column 0
  const float* drift;   // or null: column k takes drift[i][k] · column i as well (GPTAQ)
  int64_t drift_stride;
};

struct RoundingErrors {  // of nearest rounding, for groups of fp32 values under several grids each
  const float *values, *costs;  // [groups, width] and [cost_rows, width]: group g has the costs of row g mod cost_rows
  int64_t groups, width, cost_rows;
  const float *scale, *zero;    // [trials, groups]: values are (code − zero) · scale, codes 0 … top
  int64_t trials;
  float top;
  float* errors;                // [trials, groups]: Σ cost · (rounded − value)²
};

struct ScaleSearch {  // of nearest rounding, for groups of fp32 values
  const float *values, *costs;  // as RoundingErrors has them
  int64_t groups, width, cost_rows;
  float top;               // the highest code
  bool symmetric, is_signed, whole;  // all zero points are `middle`; scales take either sign; zero points are whole numbers
  float middle, lowest_zero;
  Dtype scale_dtype;       // what scales are stored in, and the smallest that it holds
  float smallest;
  const float* ratios;     // of the range of the extremes: ranges that are tried, at `places` positions where they are shorter
  int64_t ratio_count, places;
  const float* near;       // of the best scale: scales that are tried then
  int64_t near_count, fits;  // rounds of least squares, at most
  bool begun;              // scale and zero hold where to search around
  float *scale, *zero;     // [groups]
};

void pointwise(const Pointwise&);
void round_columns(const RoundColumns&, const Parallel&);
void rounding_errors(const RoundingErrors&, const Parallel&);
void search_scales(const ScaleSearch&, const Parallel&);
void rms_norm(const RmsNorm&);
void attend(const Attention&, const Parallel&);

// Each returns false where the instruction set in use or this shape has no such kernel.
bool packed_linear(const Input&, const PackedWeight&, const Output&, const Parallel&);
bool packed_products(const Input&, const Product*, int64_t count, const Parallel&);
bool sparse_linear(const Input&, const SparseWeight&, const Output&, const Parallel&);
bool sparse_products(const Input&, const SparseProduct*, int64_t count, const Parallel&);
bool pair_up(const SparseWeight&, Paired&);  // of rows on disk
bool dense_linear(const Input&, const DenseWeight&, const Output&, const Parallel&);
bool int8_linear(const Input&, const Int8Weight&, const Output&, const Parallel&);
bool attend_prompt(const PromptAttention&, const Parallel&);
bool add_products(const uint16_t* a, const uint16_t* b, int64_t tokens, int64_t columns, float* sum, const Parallel&);  // bf16 [tokens, columns]
bool block_linear(const Input&, const BlockWeight&, const Output&, const Parallel&);

// Rows r0 … r1 of W as bf16 [r1 − r0, k].
bool expand_rows(const PackedWeight&, int64_t r0, int64_t r1, uint16_t* out);
bool expand_rows(const SparseWeight&, int64_t r0, int64_t r1, uint16_t* out);
bool expand_rows(const BlockWeight&, int64_t r0, int64_t r1, uint16_t* out);

// The same as fp32, on every CPU.
void dequantize_rows(const PackedWeight&, int64_t r0, int64_t r1, float* out);
void dequantize_rows(const SparseWeight&, int64_t r0, int64_t r1, float* out);
void dequantize_rows(const BlockWeight&, int64_t r0, int64_t r1, float* out);

}  // namespace ck
