// The choice between instruction sets, when the library runs: compiled for any CPU. CK_BUILT_AVX2, CK_BUILT_AVX512
// and CK_BUILT_AVX512_BF16 say which files there are.
#include <atomic>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "interleaved.h"
#include "isa.h"
#include "pairs.h"

namespace ck {
namespace {

bool runs_avx2() {
#ifdef CK_BUILT_AVX2
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#else
  return false;
#endif
}

#if defined(CK_BUILT_AVX512) || defined(CK_BUILT_AVX512_BF16)
bool has_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni");
}
#endif

bool runs_avx512() {
#ifdef CK_BUILT_AVX512
  return has_avx512();
#else
  return false;
#endif
}

bool runs_avx512_bf16() {
#ifdef CK_BUILT_AVX512_BF16
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool runs(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16: return runs_avx512_bf16();
    case Isa::avx512: return runs_avx512();
    case Isa::avx2: return runs_avx2();
    default: return true;
  }
}

// What cpuid says of AMX in bf16; nothing here is compiled for tiles, but oneDNN will use them.
bool asks_for_tiles() {
#ifdef __x86_64__
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);
#else
  return false;
#endif
}

std::atomic<int>& chosen() {
  static std::atomic<int> isa{int(best_isa())};
  return isa;
}

}  // namespace

bool has_tiles() {
  static const bool found = asks_for_tiles();
  return found;
}

Isa best_isa() {
  for (const Isa isa : {Isa::avx512_bf16, Isa::avx512, Isa::avx2})
    if (runs(isa)) return isa;
  return Isa::portable;
}
Isa current_isa() { return Isa(chosen().load(std::memory_order_relaxed)); }
bool choose_isa(Isa isa) {
  if (!runs(isa)) return false;
  chosen().store(int(isa));
  return true;
}

// WIDE is AVX-512, with bf16 instructions or without: ON_… calls it and returns, TRY_… returns true where it has done the work.
#ifdef CK_BUILT_AVX512_BF16
#define ON_AVX512_BF16(call) if (current_isa() == Isa::avx512_bf16) return avx512_bf16::call
#define TRY_AVX512_BF16(call) if (current_isa() == Isa::avx512_bf16 && avx512_bf16::call) return true
#else
#define ON_AVX512_BF16(call)
#define TRY_AVX512_BF16(call)
#endif
#ifdef CK_BUILT_AVX512
#define ON_AVX512(call) if (current_isa() == Isa::avx512) return avx512::call
#define TRY_AVX512(call) if (current_isa() == Isa::avx512 && avx512::call) return true
#else
#define ON_AVX512(call)
#define TRY_AVX512(call)
#endif
#define ON_WIDE(call) ON_AVX512_BF16(call); ON_AVX512(call)
#define TRY_WIDE(call) TRY_AVX512_BF16(call); TRY_AVX512(call)
#ifdef CK_BUILT_AVX2
#define ON_AVX2(call) if (current_isa() == Isa::avx2) return avx2::call
#define FROM_AVX2(call) if (current_isa() >= Isa::avx2) return avx2::call
#define TRY_FROM_AVX2(call) if (current_isa() >= Isa::avx2 && avx2::call) return
#else
#define ON_AVX2(call)
#define FROM_AVX2(call)
#define TRY_FROM_AVX2(call)
#endif

namespace {

// A quarter of a megabyte of an interleaved weight at a time, in the order on disk: multiply(rows, output).
template <typename Rows, typename Weight, typename Multiply>
bool by_plain_rows(const Weight& w, int64_t row_bytes, const Output& y, const Parallel& parallel, const Multiply& multiply) {
  const int64_t piece = std::max<int64_t>((1 << 18) / std::max<int64_t>(row_bytes, 1) / kInterleavedRows, 1) * kInterleavedRows;
  std::atomic<bool> known{true};
  parallel(ceil_div(w.n, piece), [&](int64_t p0, int64_t p1) {
    for (int64_t r0 = p0 * piece; r0 < std::min(p1 * piece, w.n) && known; r0 += piece) {
      const Rows rows(w, r0, std::min(r0 + piece, w.n));
      if (!multiply(rows.w, from_row(y, r0))) known = false;
    }
  });
  return known;
}

const Parallel alone = [](int64_t count, const Range& body) { body(0, count); };

}  // namespace

bool packed_linear(const Input& x, const PackedWeight& w, const Output& y, const Parallel& p) {
  if (w.interleaved) {
    [[maybe_unused]] const Product product{w, y};
    TRY_WIDE(interleaved_products(x, &product, 1, p));
    return by_plain_rows<PlainRows>(w, w.row_bytes, y, p, [&](const auto& rows, const Output& to) { return packed_linear(x, rows, to, alone); });
  }
  ON_WIDE(packed_linear(x, w, y, p));
  ON_AVX2(packed_linear(x, w, y, p));
  return false;
}

// Weights that are packed alike are multiplied at once: x is rounded to integers once.
bool packed_products(const Input& x, const Product* products, int64_t count, const Parallel& p) {
  TRY_WIDE(interleaved_products(x, products, count, p));
  TRY_WIDE(packed_integers(x, products, count, p));
  for (int64_t i = 0; i < count; ++i)
    if (!packed_linear(x, products[i].w, products[i].y, p)) return false;
  return true;
}

bool sparse_linear(const Input& x, const SparseWeight& w, const Output& y, const Parallel& p) {
  if (w.pairs()) {
    [[maybe_unused]] const SparseProduct product{w, y};
    TRY_WIDE(pair_products(x, &product, 1, p));
    return by_plain_rows<WrittenRows>(w, w.k / 2, y, p, [&](const auto& rows, const Output& to) { return packed_linear(x, rows, to, alone); });
  }
  if (w.interleaved) {
    [[maybe_unused]] const SparseProduct product{w, y};
    TRY_WIDE(interleaved_products(x, &product, 1, p));
    return by_plain_rows<PlainSparseRows>(w, 3 * w.k / 8, y, p, [&](const auto& rows, const Output& to) { return sparse_linear(x, rows, to, alone); });
  }
  ON_WIDE(sparse_linear(x, w, y, p));
  return false;
}

bool sparse_products(const Input& x, const SparseProduct* products, int64_t count, const Parallel& p) {
  TRY_WIDE(pair_products(x, products, count, p));
  TRY_WIDE(interleaved_products(x, products, count, p));
  for (int64_t i = 0; i < count; ++i)
    if (!sparse_linear(x, products[i].w, products[i].y, p)) return false;
  return true;
}

bool plain_block(const uint8_t* block, int64_t words, uint8_t* out) {
  ON_WIDE(plain_block(block, words, out));
  return false;
}

void write_out(const SparseWeight& w, int64_t block, uint8_t* out) {
  ON_WIDE(write_out(w, block, out));
  write_out_portably(w, block, out);
}

bool pair_up(const SparseWeight& w, Paired& out) {
  ON_WIDE(pair_up(w, out));
  return false;
}

bool dense_linear(const Input& x, const DenseWeight& w, const Output& y, const Parallel& p) {
  ON_WIDE(dense_linear(x, w, y, p));
  ON_AVX2(dense_linear(x, w, y, p));
  return false;
}

bool int8_linear(const Input& x, const Int8Weight& w, const Output& y, const Parallel& p) {
  ON_WIDE(int8_linear(x, w, y, p));
  return false;
}

bool attend_prompt(const PromptAttention& a, const Parallel& p) {
  ON_WIDE(attend_prompt(a, p));
  return false;
}

bool add_products(const uint16_t* a, const uint16_t* b, int64_t tokens, int64_t columns, float* sum, const Parallel& p) {
  ON_WIDE(add_products(a, b, tokens, columns, sum, p));
  return false;
}

bool block_linear(const Input& x, const BlockWeight& w, const Output& y, const Parallel& p) {
  ON_WIDE(block_linear(x, w, y, p));
  ON_AVX2(block_linear(x, w, y, p));
  return false;
}

void rms_norm(const RmsNorm& n) {
  ON_WIDE(rms_norm(n));
  ON_AVX2(rms_norm(n));
  portable::rms_norm(n);
}

void pointwise(const Pointwise& w) {
  ON_WIDE(pointwise(w));
  ON_AVX2(pointwise(w));
  portable::pointwise(w);
}

void attend(const Attention& a, const Parallel& p) {
  ON_WIDE(attend(a, p));
  ON_AVX2(attend(a, p));
  portable::attend(a, p);
}

void round_columns(const RoundColumns& b, const Parallel& p) {
  ON_WIDE(round_columns(b, p));
  ON_AVX2(round_columns(b, p));
  portable::round_columns(b, p);
}

void search_scales(const ScaleSearch& s, const Parallel& p) {
  ON_WIDE(search_scales(s, p));
  ON_AVX2(search_scales(s, p));
  portable::search_scales(s, p);
}

void rounding_errors(const RoundingErrors& e, const Parallel& p) {
  ON_WIDE(rounding_errors(e, p));
  ON_AVX2(rounding_errors(e, p));
  portable::rounding_errors(e, p);
}

bool expand_rows(const PackedWeight& w, int64_t r0, int64_t r1, uint16_t* out) {
  if (w.interleaved) return expand_rows(PlainRows(w, r0, r1).w, 0, r1 - r0, out);
  ON_WIDE(expand_rows(w, r0, r1, out));
  return false;
}

bool expand_rows(const SparseWeight& w, int64_t r0, int64_t r1, uint16_t* out) {
  if (w.pairs()) return expand_rows(WrittenRows(w, r0, r1).w, 0, r1 - r0, out);
  if (w.interleaved) return expand_rows(PlainSparseRows(w, r0, r1).w, 0, r1 - r0, out);
  ON_WIDE(expand_rows(w, r0, r1, out));
  return false;
}

bool expand_rows(const BlockWeight& w, int64_t r0, int64_t r1, uint16_t* out) {
  ON_WIDE(expand_rows(w, r0, r1, out));
  return false;
}

void dequantize_rows(const PackedWeight& w, int64_t r0, int64_t r1, float* out) {
  if (w.interleaved) return dequantize_rows(PlainRows(w, r0, r1).w, 0, r1 - r0, out);
  TRY_FROM_AVX2(dequantize_rows(w, r0, r1, out));
  portable::dequantize_rows(w, r0, r1, out);
}

void dequantize_rows(const SparseWeight& w, int64_t r0, int64_t r1, float* out) {
  if (w.pairs()) return dequantize_rows(WrittenRows(w, r0, r1).w, 0, r1 - r0, out);
  if (w.interleaved) return dequantize_rows(PlainSparseRows(w, r0, r1).w, 0, r1 - r0, out);
  portable::dequantize_rows(w, r0, r1, out);
}

void dequantize_rows(const BlockWeight& w, int64_t r0, int64_t r1, float* out) {
  FROM_AVX2(dequantize_rows(w, r0, r1, out));
  portable::dequantize_rows(w, r0, r1, out);
}

}  // namespace ck
