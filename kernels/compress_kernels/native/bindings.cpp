// The operators as torch sees them. Tensors were checked in Python when the weight was prepared; x is checked here.
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <cstdlib>

#include "isa.h"
#include "operands.h"
#include "pairs.h"

namespace ck {
namespace {

struct DenseMatrix {  // as torch has it
  Tensor rows;
  int64_t n, k;
};

// Whether threads sleep between two products: waking one takes as long as half a megabyte of a weight does.
bool threads_sleep() {
  static const char* const policy = std::getenv("OMP_WAIT_POLICY");
  return policy && (policy[0] == 'p' || policy[0] == 'P');
}

// Shares out what reads so many bytes for each four rows of x, to no more threads than are worth it.
Parallel shared(int64_t bytes, int64_t rows) {
  return [=](int64_t count, const Range& body) {
    const int64_t least = threads_sleep() ? 1 << 19 : 1, work = std::max<int64_t>(bytes * ceil_div(rows, 4), 1);
    const int64_t grain = std::clamp<int64_t>(ceil_div(count * least, work), 1, std::max<int64_t>(count, 1));
    at::parallel_for(0, count, grain, [&](int64_t a, int64_t b) { body(a, b); });
  };
}

// From how many rows of x on oneDNN's product of pieces that were written out is the faster road. Where the CPU multiplies
// tiles (AMX) it is so from the beginning.
int64_t many_rows(int64_t otherwise) {
  return has_tiles() ? std::min<int64_t>(otherwise, 16) : otherwise;
}

// Short groups cost the tiles of bf16 a pass over the sums each, and a second way to write rows out from 64 rows on.
int64_t many_codes(const PackedWeight& w) { return many_rows(multiplies_bf16() && w.groups > 1 && w.group < 128 ? 65 : 384); }
int64_t many_kept() { return many_rows(multiplies_bf16() ? 80 : 128); }

// Each thread writes out pieces of one or four megabytes and multiplies them while its cache holds them; no thread waits for another
// before the end. False: no vectors for this shape.
template <typename Weight>
bool by_bf16_pieces(const Tensor& x, const Weight& w, Tensor& y, const OptTensor& bias, const OptTensor& residual) {
  if (x.scalar_type() != at::kBFloat16 || !multiplies_bf16() || !expand_rows(w, 0, 0, nullptr)) return false;
  // Every piece reads all of x: where that is large the pieces are too.
  const int64_t numbers = x.size(0) >= 1024 ? 1 << 21 : 1 << 19;
  const int64_t cached = std::max<int64_t>(64, numbers / std::max<int64_t>(w.k, 1));
  const int64_t piece = ceil_div(std::min(cached, ceil_div(w.n, at::get_num_threads())), 16) * 16;
  at::parallel_for(0, ceil_div(w.n, piece), 1, [&](int64_t p0, int64_t p1) {
    const at::AutoDispatchBelowADInplaceOrView guard;  // this thread knows nothing of the caller's modes
    const Tensor room = at::empty({std::min(piece, w.n), w.k}, x.options());
    for (int64_t r0 = p0 * piece; r0 < std::min(p1 * piece, w.n); r0 += piece) {
      const int64_t r1 = std::min(r0 + piece, w.n);
      expand_rows(w, r0, r1, static_cast<uint16_t*>(room.mutable_data_ptr()));
      const Tensor dense = room.slice(0, 0, r1 - r0);
      Tensor to = y.slice(1, r0, r1);
      if (!bias && !residual && y.scalar_type() == at::kBFloat16) {
        at::mm_out(to, x, dense.t());
        continue;
      }
      Tensor part = at::linear(x, dense).to(at::kFloat);
      if (bias) part += bias->slice(0, r0, r1);
      if (residual) part += residual->slice(1, r0, r1);
      to.copy_(part);
    }
  });
  return true;
}

// Rows r0 … r1 of W in fp32. For x in bf16 they may be rounded to it, where only that is written by vectors.
template <typename Weight>
Tensor float_rows(const Weight& w, int64_t r0, int64_t r1, at::ScalarType dtype) {
  const bool round = std::is_same_v<Weight, SparseWeight> && dtype == at::kBFloat16 && expand_rows(w, r0, r0, nullptr);
  const Tensor rows = at::empty({r1 - r0, w.k}, round ? at::kBFloat16 : at::kFloat);
  auto* const out = static_cast<char*>(rows.mutable_data_ptr());
  at::parallel_for(r0, r1, 1, [&](int64_t a, int64_t b) {
    if (round)
      expand_rows(w, a, b, reinterpret_cast<uint16_t*>(out) + (a - r0) * w.k);
    else
      dequantize_rows(w, a, b, reinterpret_cast<float*>(out) + (a - r0) * w.k);
  });
  return rows.to(at::kFloat);
}

Tensor float_rows(const DenseMatrix& w, int64_t r0, int64_t r1, at::ScalarType) { return w.rows.slice(0, r0, r1).to(at::kFloat); }

// Rows of W are written out a quarter of a megabyte at a time; nothing of the size of the weight is ever made.
template <typename Weight>
void by_pieces(const Tensor& x, const Weight& w, Tensor& y, const OptTensor& bias, const OptTensor& residual) {
  const Tensor wide = x.to(at::kFloat);
  const int64_t piece = std::max<int64_t>(16, (1 << 18) / std::max<int64_t>(w.k, 1)) * at::get_num_threads();
  for (int64_t r0 = 0; r0 < w.n; r0 += piece) {
    const int64_t r1 = std::min(r0 + piece, w.n);
    Tensor part = at::linear(wide, float_rows(w, r0, r1, x.scalar_type()));
    if (bias) part += bias->slice(0, r0, r1);
    if (residual) part += residual->slice(1, r0, r1);
    y.slice(1, r0, r1).copy_(part);
  }
}

// The product of many rows of x; false where the kernels are faster: those of integers, without bf16 instructions.
template <typename Weight>
bool by_large_pieces(const Tensor& x, const Weight& w, Tensor& y, const OptTensor& bias, const OptTensor& residual) {
  if (multiplies_bf16()) return by_bf16_pieces(x, w, y, bias, residual);
  if (w.interleaved) return false;
  by_pieces(x, w, y, bias, residual);
  return true;
}

// All rows of W written out, [n, k] in `dtype`: what a backward multiplies with.
template <typename Weight>
Tensor decoded(const Weight& w, at::ScalarType dtype) {
  dtype_of(dtype);
  const bool vectors = dtype == at::kBFloat16 && expand_rows(w, 0, 0, nullptr);
  const auto options = at::TensorOptions().dtype(vectors ? at::kBFloat16 : at::kFloat);
  const Tensor dense = at::empty({w.n, w.k}, options);
  at::parallel_for(0, w.n, 16, [&](int64_t a, int64_t b) {
    if (vectors) {
      expand_rows(w, a, b, static_cast<uint16_t*>(dense.mutable_data_ptr()) + a * w.k);
    } else {
      dequantize_rows(w, a, b, dense.mutable_data_ptr<float>() + a * w.k);
    }
  });
  return dense.to(dtype);
}

struct Call {  // x as rows, and the output they make
  Tensor x, y;
  OptTensor bias, residual;
  std::vector<int64_t> shape;
  Call(const Tensor& input, int64_t k, int64_t n, const OptTensor& b, const OptTensor& a, std::optional<at::ScalarType> out) {
    TORCH_CHECK_VALUE(input.dim() >= 1 && input.size(-1) == k, "x has ", input.dim() ? input.size(-1) : 0,
                      " features where the weight takes ", k);
    TORCH_CHECK_VALUE(input.device().is_cpu(), "this operator runs on the CPU, x is on ", input.device());
    dtype_of(input.scalar_type());
    shape = input.sizes().vec();
    shape.back() = n;
    x = input.reshape({-1, k}).contiguous();
    y = at::empty({x.size(0), n}, x.options().dtype(out.value_or(input.scalar_type())));
    if (b) bias = b->to(at::kFloat).contiguous();
    if (a) residual = a->to(at::kFloat).reshape({-1, n}).contiguous();
    if (residual) TORCH_CHECK_VALUE(residual->size(0) == x.size(0), "the residual and x differ in rows");
  }
  bool empty() const { return y.numel() == 0; }
  Input input() const { return {x.const_data_ptr(), dtype_of(x.scalar_type()), x.size(0), x.size(1)}; }
  Output output() {
    return {y.mutable_data_ptr(), dtype_of(y.scalar_type()), y.size(1), bias ? bias->const_data_ptr<float>() : nullptr,
            residual ? residual->const_data_ptr<float>() : nullptr};
  }
  Tensor result() const { return y.view(shape); }
};

// W of a few rows: the operands are those of the products, cut to these rows.
Tensor packed_rows(const Tensor& codes, const Tensor& scale, const OptTensor& zero, int64_t bits, int64_t group, int64_t k,
                   at::ScalarType dtype) {
  return decoded(packed_weight(codes, scale, zero, bits, group, k), dtype);
}

Tensor nf4_rows(const Tensor& codes, const Tensor& absmax, const Tensor& table, at::ScalarType dtype) {
  return decoded(nf4_weight(codes, absmax, table), dtype);
}

Tensor gguf_rows(const Tensor& packed, int64_t type, int64_t k, at::ScalarType dtype) {
  return decoded(block_weight(packed, type, k), dtype);
}

Tensor sparse_rows(const Tensor& mask, const Tensor& start, const Tensor& values, int64_t bits, const OptTensor& scale,
                   const OptTensor& zero, int64_t group, int64_t k, at::ScalarType dtype) {
  return decoded(sparse_weight(mask, start, values, bits, scale, zero, group, k), dtype);
}

Tensor copied(const void* from, int64_t count, at::ScalarType dtype) {
  const Tensor made = at::empty({count}, dtype);
  std::memcpy(made.mutable_data_ptr(), from, made.nbytes());
  return made;
}

// Codes on disk as pairs of rows: their bytes, the first of every 32 rows, and the weights that are kept though they are zero.
std::tuple<Tensor, Tensor, Tensor> pairs(const Tensor& mask, const Tensor& start, const Tensor& values, const Tensor& scale,
                                         const OptTensor& zero, int64_t group, int64_t k) {
  Paired made;
  TORCH_CHECK(pair_up(sparse_weight(mask, start, values, 4, scale, zero, group, k), made), "no kernel of pairs for this CPU");
  return {copied(made.bytes.data(), int64_t(made.bytes.size()), at::kByte), copied(made.start.data(), int64_t(made.start.size()), at::kLong),
          copied(made.kept_zeros.data(), int64_t(made.kept_zeros.size()), at::kByte)};
}

// All codes of some blocks of 32 rows, zero points where nothing is kept: int32 [32 · blocks, k / 8], interleaved.
Tensor pairs_codes(const Tensor& mask, const Tensor& start, const Tensor& values, const Tensor& scale, const OptTensor& zero,
                   int64_t group, int64_t k, at::IntArrayRef blocks) {
  const SparseWeight w = sparse_weight(mask, start, values, 4, scale, zero, group, k, true);
  const int64_t count = int64_t(blocks.size()), bytes = kPairedRows * k / 2;
  const Tensor out = at::empty({kPairedRows * count, k / 8}, at::kInt);
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  at::parallel_for(0, count, 1, [&](int64_t a, int64_t b) {
    for (int64_t i = a; i < b; ++i) write_out(w, blocks[i], to + i * bytes);
  });
  return out;
}

Tensor packed(const Tensor& x, const Tensor& codes, const Tensor& scale, const OptTensor& zero, int64_t bits,
              int64_t group, int64_t k, bool interleaved, const OptTensor& bias, const OptTensor& residual,
              std::optional<at::ScalarType> out) {
  const int64_t n = codes.size(0);
  Call call(x, k, n, bias, residual, out);
  if (call.empty()) return call.result();
  const PackedWeight w = packed_weight(codes, scale, zero, bits, group, k, interleaved);
  const bool many = call.x.size(0) >= many_codes(w);
  if (many && by_large_pieces(call.x, w, call.y, call.bias, call.residual)) return call.result();
  if (!packed_linear(call.input(), w, call.output(), shared(w.row_bytes * n, call.x.size(0)))) by_pieces(call.x, w, call.y, call.bias, call.residual);
  return call.result();
}

Tensor nf4(const Tensor& x, const Tensor& codes, const Tensor& absmax, const Tensor& table, const OptTensor& bias,
           const OptTensor& residual, std::optional<at::ScalarType> out) {
  const int64_t n = codes.size(0), k = 2 * codes.size(1);
  Call call(x, k, n, bias, residual, out);
  if (call.empty()) return call.result();
  const PackedWeight w = nf4_weight(codes, absmax, table);
  const bool many = call.x.size(0) >= many_codes(w);
  if (many && by_large_pieces(call.x, w, call.y, call.bias, call.residual)) return call.result();
  if (!packed_linear(call.input(), w, call.output(), shared(w.row_bytes * n, call.x.size(0)))) by_pieces(call.x, w, call.y, call.bias, call.residual);
  return call.result();
}

Tensor sparse(const Tensor& x, const Tensor& mask, const Tensor& start, const Tensor& values, int64_t bits,
              const OptTensor& scale, const OptTensor& zero, int64_t group, int64_t k, bool interleaved, const OptTensor& bias,
              const OptTensor& residual, std::optional<at::ScalarType> out) {
  const int64_t n = mask.size(0);
  Call call(x, k, n, bias, residual, out);
  if (call.empty()) return call.result();
  const SparseWeight w = sparse_weight(mask, start, values, bits, scale, zero, group, k, interleaved);
  const bool many = call.x.size(0) >= many_kept();
  if (many && by_large_pieces(call.x, w, call.y, call.bias, call.residual)) return call.result();
  if (!sparse_linear(call.input(), w, call.output(), shared(w.value_bytes + w.mask_bytes * n, call.x.size(0)))) by_pieces(call.x, w, call.y, call.bias, call.residual);
  return call.result();
}

Tensor gguf(const Tensor& x, const Tensor& packed, int64_t type, int64_t k, const OptTensor& bias, const OptTensor& residual,
            std::optional<at::ScalarType> out) {
  Call call(x, k, packed.size(0), bias, residual, out);
  if (call.empty()) return call.result();
  const BlockWeight w = block_weight(packed, type, k);
  if (block_linear(call.input(), w, call.output(), shared(w.row_bytes * w.n, call.x.size(0)))) return call.result();
  if (!by_bf16_pieces(call.x, w, call.y, call.bias, call.residual)) by_pieces(call.x, w, call.y, call.bias, call.residual);
  return call.result();
}

Tensor dense(const Tensor& x, const Tensor& weight, const OptTensor& bias, const OptTensor& residual,
             std::optional<at::ScalarType> out) {
  Call call(x, weight.size(1), weight.size(0), bias, residual, out);
  if (call.empty()) return call.result();
  const bool plain = weight.scalar_type() == at::kBFloat16 && weight.stride(1) == 1;
  const bool slow = (current_isa() == Isa::avx2 || current_isa() == Isa::avx512) && !has_tiles();  // torch's product of bf16
  if (plain && !slow && call.x.scalar_type() == at::kBFloat16 && call.x.size(0) > 8 && !call.residual && !call.bias &&
      call.y.scalar_type() == at::kBFloat16) {
    return at::linear(call.x, weight).view(call.shape);  // many rows, nothing to add: oneDNN is at the peak already
  }
  const DenseWeight w{plain ? static_cast<const uint16_t*>(weight.const_data_ptr()) : nullptr, weight.size(0),
                      weight.size(1), weight.stride(0)};
  if (plain && dense_linear(call.input(), w, call.output(), shared(2 * w.n * w.k, call.x.size(0)))) return call.result();
  if (slow) {
    by_pieces(call.x, DenseMatrix{weight, w.n, w.k}, call.y, call.bias, call.residual);
  } else {
    Tensor product = at::linear(call.x, weight.to(call.x.scalar_type())).to(at::kFloat);
    if (call.bias) product += *call.bias;
    if (call.residual) product += *call.residual;
    call.y.copy_(product);
  }
  return call.result();
}

// Only with AVX-512, and below 2^17 columns: torch._int_mm does the rest.
Tensor int8(const Tensor& x, const Tensor& weight, const Tensor& scale, const OptTensor& bias, const OptTensor& residual,
            std::optional<at::ScalarType> out) {
  Call call(x, weight.size(1), weight.size(0), bias, residual, out);
  if (call.empty()) return call.result();
  const Int8Weight w{weight.const_data_ptr<int8_t>(), weight.size(0), weight.size(1), scale.const_data_ptr(),
                     dtype_of(scale.scalar_type()), scale.size(0) == 1};
  TORCH_CHECK(int8_linear(call.input(), w, call.output(), shared(w.n * w.k, call.x.size(0))), "no int8 kernel for this CPU or this shape");
  return call.result();
}

bool step_dtype(const Tensor& t) { return t.scalar_type() == at::kBFloat16 || t.scalar_type() == at::kFloat; }

Tensor rms_norm_row(const Tensor& x, const OptTensor& weight, double eps, double offset, bool round_first) {
  TORCH_CHECK_VALUE(step_dtype(x), "native_rms_norm takes float32 and bfloat16, not ", x.scalar_type());
  TORCH_CHECK_VALUE(!weight || (weight->scalar_type() == x.scalar_type() && weight->numel() == x.size(-1)),
                    "the weight of a norm has the dtype and the width of x");
  const Tensor rows = x.contiguous();
  const OptTensor scale = weight ? OptTensor(weight->contiguous()) : weight;
  const Tensor y = at::empty(x.sizes(), x.options());
  if (y.numel() == 0) return y;
  rms_norm({rows.const_data_ptr(), scale ? scale->const_data_ptr() : nullptr, y.mutable_data_ptr(),
            dtype_of(x.scalar_type()), rows.numel() / rows.size(-1), rows.size(-1), float(eps), float(offset), round_first});
  return y;
}

// query [batch, heads, 1, width], keys and values [batch, kv_heads, capacity, …], position int64 [1]: that of the query, which
// sees the `window` positions up to its own (all of them where window is 0). Returns [batch, 1, heads, value width].
Tensor decode_attention(const Tensor& query, const Tensor& keys, const Tensor& values, const Tensor& position, double scale,
                        int64_t window, double softcap) {
  TORCH_CHECK_VALUE(query.dim() == 4 && query.size(2) == 1 && keys.dim() == 4 && values.dim() == 4,
                    "native_attention takes one query for each head and a cache of four dimensions");
  TORCH_CHECK_VALUE(step_dtype(query) && keys.scalar_type() == query.scalar_type() &&
                        values.scalar_type() == query.scalar_type(),
                    "native_attention takes float32 and bfloat16, one dtype for all");
  TORCH_CHECK_VALUE(keys.is_contiguous() && values.is_contiguous(), "the cache of native_attention is contiguous");
  TORCH_CHECK_VALUE(keys.size(0) == query.size(0) && values.size(0) == query.size(0) && keys.size(1) == values.size(1) &&
                        keys.size(2) == values.size(2) && keys.size(3) == query.size(3) &&
                        query.size(1) % keys.size(1) == 0,
                    "the shapes of query, keys and values do not fit");
  const Tensor q = query.contiguous();
  const int64_t last = position.item<int64_t>() + 1;
  TORCH_CHECK_VALUE(last >= 1 && last <= keys.size(2), "position ", last - 1, " is outside the cache of ", keys.size(2));
  const int64_t first = window > 0 ? std::max<int64_t>(0, last - window) : 0;
  const Tensor out = at::empty({query.size(0), 1, query.size(1), values.size(3)}, query.options());
  attend({q.const_data_ptr(), keys.const_data_ptr(), values.const_data_ptr(), out.mutable_data_ptr(),
          dtype_of(query.scalar_type()), query.size(0), query.size(1), keys.size(1), keys.size(2), keys.size(3),
          values.size(3), first, last, float(scale), float(softcap)},
         shared(query.element_size() * (last - first) * keys.size(0) * keys.size(1) * (keys.size(3) + values.size(3)), 1));
  return out;
}

// query [batch, heads, length, width], keys and values [batch, kv_heads, length, …], all bf16. Returns [batch, heads, length, value
// width], a view of [batch, length, heads, value width].
Tensor prompt_attention(const Tensor& query, const Tensor& keys, const Tensor& values, double scale, bool causal) {
  TORCH_CHECK_VALUE(query.dim() == 4 && keys.dim() == 4 && values.dim() == 4 && query.size(0) == keys.size(0) &&
                        query.size(0) == values.size(0) && keys.size(1) == values.size(1) && query.size(1) % keys.size(1) == 0 &&
                        query.size(2) == keys.size(2) && query.size(2) == values.size(2) && query.size(3) == keys.size(3),
                    "the shapes of query, keys and values do not fit");
  TORCH_CHECK_VALUE(scale > 0, "the scale of native_prompt_attention is positive");
  const auto heads = [](const Tensor& t) {
    TORCH_CHECK_VALUE(t.scalar_type() == at::kBFloat16 && t.stride(3) == 1, "native_prompt_attention takes bfloat16 with a width of stride 1");
    return Heads{static_cast<const uint16_t*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2)};
  };
  const Tensor out = at::empty({query.size(0), query.size(2), query.size(1), values.size(3)}, query.options());
  if (out.numel() == 0) return out.transpose(1, 2);
  const PromptAttention a{heads(query), heads(keys), heads(values), static_cast<uint16_t*>(out.mutable_data_ptr()), query.size(0),
                          query.size(1), keys.size(1), query.size(2), query.size(3), values.size(3), float(scale), causal};
  TORCH_CHECK(attend_prompt(a, shared(query.nbytes(), 4 * query.size(2))), "no attention kernel for this CPU or this width");
  return out.transpose(1, 2);
}

// sum fp32 [columns, columns] += aᵀ b for bf16 a and b [tokens, columns]; where b is a, on and below the diagonal alone.
void products_add(const Tensor& sum, const Tensor& a, const OptTensor& b) {
  const auto fits = [&](const Tensor& t) { return t.dim() == 2 && t.scalar_type() == at::kBFloat16 && t.sizes() == a.sizes(); };
  TORCH_CHECK_VALUE(fits(a) && (!b || fits(*b)) && sum.dim() == 2 && sum.scalar_type() == at::kFloat && sum.size(0) == a.size(1) &&
                        sum.size(1) == a.size(1) && sum.is_contiguous(),
                    "native_add_products takes bfloat16 [tokens, columns] and adds to contiguous float32 [columns, columns]");
  const Tensor left = a.contiguous(), right = b ? b->contiguous() : left;
  TORCH_CHECK(add_products(static_cast<const uint16_t*>(left.const_data_ptr()), static_cast<const uint16_t*>(right.const_data_ptr()),
                           left.size(0), left.size(1), sum.mutable_data_ptr<float>(), shared(a.nbytes(), a.size(1))),
              "no kernel of sums of products for this CPU");
}

// GPTQ's recursion over a block of columns (RoundColumns in common.h): the values and the errors [columns, rows].
std::tuple<Tensor, Tensor> round_block(const Tensor& block, const Tensor& root, const Tensor& scale, const Tensor& low, const Tensor& high,
                                       at::IntArrayRef groups, const OptTensor& first, const OptTensor& drift) {
  const auto plain = [](const Tensor& t, int64_t n, int64_t m) {
    return t.dim() == 2 && t.scalar_type() == at::kFloat && t.size(0) == n && t.size(1) == m && (t.stride(1) == 1 || m == 1);
  };
  TORCH_CHECK_VALUE(block.dim() == 2 && block.is_contiguous() && int64_t(groups.size()) == block.size(0) && scale.dim() == 2,
                    "native_round_columns takes a contiguous block [columns, rows] and the group of each column");
  const int64_t n = block.size(0), rows = block.size(1);
  for (const Tensor& t : {scale, low, high})
    TORCH_CHECK_VALUE(plain(t, scale.size(0), rows) && t.is_contiguous(), "scales and ends of the grid are contiguous float32 [groups, rows]");
  TORCH_CHECK_VALUE(plain(block, n, rows) && plain(root, n, n) && (!drift || plain(*drift, n, n)), "the factors of a block are float32 [columns, columns]");
  for (const int64_t g : groups) TORCH_CHECK_VALUE(g >= 0 && g < scale.size(0), "there is no group ", g);
  TORCH_CHECK_VALUE(!first || (first->scalar_type() == at::kFloat && first->is_contiguous() && first->numel() == rows), "the first column is float32 [rows]");
  Tensor values = at::empty(block.sizes(), block.options()), errors = at::empty(block.sizes(), block.options());
  round_columns({block.mutable_data_ptr<float>(), values.mutable_data_ptr<float>(), errors.mutable_data_ptr<float>(), n, rows,
                 root.const_data_ptr<float>(), root.stride(0), scale.const_data_ptr<float>(), low.const_data_ptr<float>(),
                 high.const_data_ptr<float>(), groups.data(), first ? first->const_data_ptr<float>() : nullptr,
                 drift ? drift->const_data_ptr<float>() : nullptr, drift ? drift->stride(0) : 0},
                shared(4 * n * n * rows, 1));
  return {values, errors};
}

// Weighted squared errors of nearest rounding [trials, groups] (RoundingErrors in common.h).
Tensor errors_of_rounding(const Tensor& values, const Tensor& costs, const Tensor& scale, const Tensor& zero, int64_t top) {
  for (const Tensor& t : {values, costs, scale, zero})
    TORCH_CHECK_VALUE(t.dim() == 2 && t.scalar_type() == at::kFloat && t.is_contiguous(), "native_rounding_errors takes contiguous float32 matrices");
  const int64_t groups = values.size(0), width = values.size(1), trials = scale.size(0);
  TORCH_CHECK_VALUE(costs.size(1) == width && costs.size(0) > 0 && groups % costs.size(0) == 0, "the groups' costs are [rows, width], again and again");
  TORCH_CHECK_VALUE(scale.size(1) == groups && zero.sizes() == scale.sizes(), "scales and zero points are [trials, groups]");
  const Tensor errors = at::empty(scale.sizes(), scale.options());
  rounding_errors({values.const_data_ptr<float>(), costs.const_data_ptr<float>(), groups, width, costs.size(0),
                   scale.const_data_ptr<float>(), zero.const_data_ptr<float>(), trials, float(top), errors.mutable_data_ptr<float>()},
                  shared(8 * values.numel() * trials, 1));
  return errors;
}

// Scales and zero points fp32 [groups] of least weighted squared error (ScaleSearch in common.h); `begun` holds where to search around.
std::tuple<Tensor, Tensor> scales_of_least_error(const Tensor& values, const Tensor& costs, int64_t top, std::optional<int64_t> middle, bool is_signed,
                                                 bool whole, int64_t lowest_zero, at::ScalarType scale_dtype, double smallest, const Tensor& ratios,
                                                 int64_t places, const Tensor& near, int64_t fits, const OptTensor& scale, const OptTensor& zero) {
  for (const Tensor& t : {values, costs, ratios, near})
    TORCH_CHECK_VALUE(t.scalar_type() == at::kFloat && t.is_contiguous(), "native_search_scales takes contiguous float32 tensors");
  TORCH_CHECK_VALUE(values.dim() == 2 && values.size(1) > 0 && costs.dim() == 2, "values are [groups, width], costs [rows, width]");
  const int64_t groups = values.size(0), width = values.size(1);
  TORCH_CHECK_VALUE(costs.size(1) == width && costs.size(0) > 0 && groups % costs.size(0) == 0, "the groups' costs are [rows, width], again and again");
  TORCH_CHECK_VALUE(ratios.numel() > 0 && near.numel() > 0 && scale.has_value() == zero.has_value(), "there is nothing to try");
  Tensor found[2];
  for (int i = 0; i < 2; ++i) {
    const OptTensor& given = i ? zero : scale;
    TORCH_CHECK_VALUE(!given || (given->numel() == groups && given->scalar_type() == at::kFloat), "scales and zero points are float32 [groups]");
    found[i] = given ? given->contiguous().clone().view({groups}) : at::empty({groups}, values.options());
  }
  search_scales({values.const_data_ptr<float>(), costs.const_data_ptr<float>(), groups, width, costs.size(0), float(top), middle.has_value(), is_signed,
                 whole, float(middle.value_or(0)), float(lowest_zero), dtype_of(scale_dtype), float(smallest), ratios.const_data_ptr<float>(),
                 ratios.numel(), places, near.const_data_ptr<float>(), near.numel(), fits, scale.has_value(), found[0].mutable_data_ptr<float>(),
                 found[1].mutable_data_ptr<float>()},
                shared(16 * values.numel() * (ratios.numel() + near.numel()), 1));
  return {found[0], found[1]};
}

constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};

std::string isa() { return kIsaNames[int(current_isa())]; }

bool use_isa(const std::string& name) {
  for (int i = 0; i < 4; ++i)
    if (name == kIsaNames[i]) return choose_isa(Isa(i));
  TORCH_CHECK_VALUE(false, "there is no instruction set called ", name, ": portable, avx2, avx512, avx512_bf16");
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(compress_kernels, m) {
  m.def("native_packed(Tensor x, Tensor codes, Tensor scale, Tensor? zero, int bits, int group, int k, bool interleaved, Tensor? bias, "
        "Tensor? residual, ScalarType? out) -> Tensor");
  m.def("native_nf4(Tensor x, Tensor codes, Tensor absmax, Tensor table, Tensor? bias, Tensor? residual, ScalarType? out) "
        "-> Tensor");
  m.def("native_sparse(Tensor x, Tensor mask, Tensor start, Tensor values, int bits, Tensor? scale, Tensor? zero, "
        "int group, int k, bool interleaved, Tensor? bias, Tensor? residual, ScalarType? out) -> Tensor");
  m.def("native_packed_rows(Tensor codes, Tensor scale, Tensor? zero, int bits, int group, int k, ScalarType dtype) -> Tensor");
  m.def("native_nf4_rows(Tensor codes, Tensor absmax, Tensor table, ScalarType dtype) -> Tensor");
  m.def("native_sparse_rows(Tensor mask, Tensor start, Tensor values, int bits, Tensor? scale, Tensor? zero, int group, "
        "int k, ScalarType dtype) -> Tensor");
  m.def("native_pairs(Tensor mask, Tensor start, Tensor values, Tensor scale, Tensor? zero, int group, int k) -> (Tensor, Tensor, Tensor)");
  m.def("native_pairs_codes(Tensor mask, Tensor start, Tensor values, Tensor scale, Tensor? zero, int group, int k, int[] blocks) -> Tensor");
  m.def("native_dense(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, ScalarType? out) -> Tensor");
  m.def("native_int8(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor? residual, ScalarType? out) -> Tensor");
  m.def("native_gguf(Tensor x, Tensor packed, int type, int k, Tensor? bias, Tensor? residual, ScalarType? out) -> Tensor");
  m.def("native_gguf_rows(Tensor packed, int type, int k, ScalarType dtype) -> Tensor");
  m.def("native_rms_norm(Tensor x, Tensor? weight, float eps, float offset, bool round_first) -> Tensor");
  m.def("native_attention(Tensor query, Tensor keys, Tensor values, Tensor position, float scale, int window, float softcap) "
        "-> Tensor");
  m.def("native_prompt_attention(Tensor query, Tensor keys, Tensor values, float scale, bool causal) -> Tensor");
  m.def("native_add_products(Tensor(a!) sum, Tensor a, Tensor? b) -> ()");
  m.def("native_round_columns(Tensor(a!) block, Tensor root, Tensor scale, Tensor low, Tensor high, int[] groups, Tensor? first, "
        "Tensor? drift) -> (Tensor, Tensor)");
  m.def("native_rounding_errors(Tensor values, Tensor costs, Tensor scale, Tensor zero, int top) -> Tensor");
  m.def("native_search_scales(Tensor values, Tensor costs, int top, int? middle, bool is_signed, bool whole, int lowest_zero, ScalarType scale_dtype, "
        "float smallest, Tensor ratios, int places, Tensor near, int fits, Tensor? scale, Tensor? zero) -> (Tensor, Tensor)");
  m.def("native_has_tiles() -> bool", has_tiles);
  m.def("native_isa() -> str", isa);
  m.def("native_use_isa(str name) -> bool", use_isa);
}

TORCH_LIBRARY_IMPL(compress_kernels, CPU, m) {
  m.impl("native_packed", packed);
  m.impl("native_nf4", nf4);
  m.impl("native_sparse", sparse);
  m.impl("native_packed_rows", packed_rows);
  m.impl("native_nf4_rows", nf4_rows);
  m.impl("native_sparse_rows", sparse_rows);
  m.impl("native_pairs", pairs);
  m.impl("native_pairs_codes", pairs_codes);
  m.impl("native_dense", dense);
  m.impl("native_int8", int8);
  m.impl("native_gguf", gguf);
  m.impl("native_gguf_rows", gguf_rows);
  m.impl("native_rms_norm", rms_norm_row);
  m.impl("native_attention", decode_attention);
  m.impl("native_prompt_attention", prompt_attention);
  m.impl("native_add_products", products_add);
  m.impl("native_round_columns", round_block);
  m.impl("native_rounding_errors", errors_of_rounding);
  m.impl("native_search_scales", scales_of_least_error);
}

}  // namespace ck
