// A decoding step as a list of instructions over tensors that stay where they are: what a model's code did once, done again
// without Python and without torch between the kernels. Which instructions there are is decided in Python.
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include "crew.h"
#include "isa.h"
#include "operands.h"

namespace ck {
namespace {

using Instruction = std::function<bool(const Parallel&)>;  // false: no kernel for this

Input input_of(const Tensor& x, int64_t k) {
  TORCH_CHECK_VALUE(x.is_contiguous() && x.size(-1) == k, "an instruction takes contiguous rows of ", k);
  return {x.const_data_ptr(), dtype_of(x.scalar_type()), x.numel() / k, k};
}

Output output_of(const Tensor& y, const OptTensor& bias) {
  TORCH_CHECK_VALUE(y.is_contiguous(), "an instruction writes contiguous rows");
  return {y.mutable_data_ptr(), dtype_of(y.scalar_type()), y.size(-1), bias ? bias->const_data_ptr<float>() : nullptr, nullptr};
}

// The strides of `from` broadcast to the sizes of y, in the last four places.
void strides_of(const Tensor& from, const Tensor& y, int64_t (&strides)[4]) {
  const Tensor wide = from.expand(y.sizes());
  for (int d = 0; d < 4; ++d) strides[d] = 0;
  for (int64_t d = 0; d < y.dim(); ++d) strides[4 - y.dim() + d] = wide.size(d) == 1 ? 0 : wide.stride(d);
}

// Neighbouring dimensions that all three tensors step through evenly become one.
void join_dimensions(Pointwise& w) {
  const auto strides = {&w.y_strides, &w.a_strides, &w.b_strides};
  int last = 3;
  for (int d = 2; d >= 0; --d) {
    bool even = true;
    for (auto* s : strides) even &= (*s)[d] == (*s)[last] * w.sizes[last];
    if (w.sizes[d] == 1) continue;
    if (w.sizes[last] == 1) {
      for (auto* s : strides) (*s)[last] = (*s)[d];
    } else if (!even) {
      --last;
      w.sizes[last] = w.sizes[d];
      for (auto* s : strides) (*s)[last] = (*s)[d];
      continue;
    }
    w.sizes[last] *= w.sizes[d];
  }
  for (int d = 0; d < last; ++d) w.sizes[d] = 1;
}

const char* const kKinds[] = {"copy", "add", "sub", "mul", "neg", "silu", "gelu"};

class Program : public torch::CustomClassHolder {
 public:
  // Each appends an instruction, and runs it once; false where there is no kernel for it, which appends nothing.

  // y = x Wᵀ + bias; what follows another product of the same x with codes of as many bits joins it.
  bool packed(const Tensor& x, const Tensor& codes, const Tensor& scale, const OptTensor& zero, int64_t bits, int64_t group,
              int64_t k, bool interleaved, const OptTensor& bias, const Tensor& y) {
    OptTensor wide = held(bias);
    hold({x, codes, scale, y}), hold(zero);
    return product<Product>(x, k, {packed_weight(codes, scale, zero, bits, group, k, interleaved), output_of(y, wide)}, packed_open_,
                            packed_products);
  }

  bool nf4(const Tensor& x, const Tensor& codes, const Tensor& absmax, const Tensor& table, const OptTensor& bias,
           const Tensor& y) {
    const PackedWeight w = nf4_weight(codes, absmax, table);
    return linear(x, w.k, bias, y, {codes, absmax, table},
                  [w](const Input& i, const Output& o, const Parallel& p) { return packed_linear(i, w, o, p); });
  }

  bool sparse(const Tensor& x, const Tensor& mask, const Tensor& start, const Tensor& values, int64_t bits,
              const OptTensor& scale, const OptTensor& zero, int64_t group, int64_t k, bool interleaved, const OptTensor& bias,
              const Tensor& y) {
    OptTensor wide = held(bias);
    hold({x, mask, start, values, y}), hold(scale), hold(zero);
    const SparseProduct made{sparse_weight(mask, start, values, bits, scale, zero, group, k, interleaved), output_of(y, wide)};
    return product<SparseProduct>(x, k, made, sparse_open_, sparse_products);
  }

  bool int8(const Tensor& x, const Tensor& weight, const Tensor& scale, const OptTensor& bias, const Tensor& y) {
    const Int8Weight w{weight.const_data_ptr<int8_t>(), weight.size(0), weight.size(1), scale.const_data_ptr(),
                       dtype_of(scale.scalar_type()), scale.size(0) == 1};
    return linear(x, w.k, bias, y, {weight, scale},
                  [w](const Input& i, const Output& o, const Parallel& p) { return int8_linear(i, w, o, p); });
  }

  bool gguf(const Tensor& x, const Tensor& packed, int64_t type, int64_t k, const OptTensor& bias, const Tensor& y) {
    const BlockWeight w = block_weight(packed, type, k);
    return linear(x, k, bias, y, {packed},
                  [w](const Input& i, const Output& o, const Parallel& p) { return block_linear(i, w, o, p); });
  }

  bool dense(const Tensor& x, const Tensor& weight, const OptTensor& bias, const Tensor& y) {
    if (weight.scalar_type() != at::kBFloat16 || weight.stride(1) != 1) return false;
    const DenseWeight w{static_cast<const uint16_t*>(weight.const_data_ptr()), weight.size(0), weight.size(1), weight.stride(0)};
    return linear(x, w.k, bias, y, {weight},
                  [w](const Input& i, const Output& o, const Parallel& p) { return dense_linear(i, w, o, p); });
  }

  bool norm(const Tensor& x, const OptTensor& weight, double eps, double offset, bool round_first, const Tensor& y) {
    if (!x.is_contiguous() || (weight && !weight->is_contiguous())) return false;
    hold({x, y}), hold(weight);
    const RmsNorm n{x.const_data_ptr(), weight ? weight->const_data_ptr() : nullptr, y.mutable_data_ptr(),
                    dtype_of(x.scalar_type()), x.numel() / x.size(-1), x.size(-1), float(eps), float(offset), round_first};
    return append([n](const Parallel&) { return rms_norm(n), true; });
  }

  bool attention(const Tensor& query, const Tensor& keys, const Tensor& values, const Tensor& position, double scale,
                 int64_t window, double softcap, const Tensor& y) {
    if (!query.is_contiguous() || !keys.is_contiguous() || !values.is_contiguous()) return false;
    hold({query, keys, values, position, y});
    Attention a{query.const_data_ptr(), keys.const_data_ptr(), values.const_data_ptr(), y.mutable_data_ptr(),
                dtype_of(query.scalar_type()), query.size(0), query.size(1), keys.size(1), keys.size(2), keys.size(3),
                values.size(3), 0, 0, float(scale), float(softcap)};
    const int64_t* at = position.const_data_ptr<int64_t>();
    return append([a, at, window](const Parallel& p) mutable {
      a.last = *at + 1, a.first = window > 0 ? std::max<int64_t>(0, a.last - window) : 0;
      TORCH_CHECK_VALUE(a.last >= 1 && a.last <= a.capacity, "position ", *at, " is outside the cache of ", a.capacity);
      return attend(a, p), true;
    });
  }

  bool pointwise(const std::string& kind, const Tensor& y, const Tensor& a, const OptTensor& b, double scalar) {
    std::optional<Pointwise> w = described(kind, y, a, b, scalar);
    return w && append([w = *w](const Parallel&) { return ck::pointwise(w), true; });
  }

  // y[…, position, …] = a in dimension `dim`, where a has one place.
  bool put(const Tensor& y, int64_t dim, const Tensor& position, const Tensor& a) {
    if (a.size(dim) != 1) return false;
    const Tensor place = y.narrow(dim, 0, 1);
    std::optional<Pointwise> w = described("copy", place, a, {}, 0.);
    if (!w) return false;
    hold(position);
    const int64_t* at = position.const_data_ptr<int64_t>();
    const int64_t step = y.stride(dim) * y.element_size(), places = y.size(dim);
    return append([w = *w, at, step, places](const Parallel&) {
      TORCH_CHECK_VALUE(*at >= 0 && *at < places, "position ", *at, " is outside the cache of ", places);
      Pointwise here = w;
      here.y = static_cast<char*>(w.y) + *at * step;
      return ck::pointwise(here), true;
    });
  }

  // y = the row of W that `id` names.
  bool row(const Tensor& id, const Tensor& codes, const Tensor& scale, const OptTensor& zero, int64_t bits, int64_t group,
           int64_t k, bool interleaved, const Tensor& y) {
    const PackedWeight w = packed_weight(codes, scale, zero, bits, group, k, interleaved);
    if (id.numel() != 1 || y.scalar_type() != at::kBFloat16 || !expand_rows(w, 0, 0, nullptr)) return false;
    hold({id, codes, scale, y}), hold(zero);
    const int64_t* at = id.const_data_ptr<int64_t>();
    auto* to = static_cast<uint16_t*>(y.mutable_data_ptr());
    return append([w, at, to](const Parallel&) {
      TORCH_CHECK_INDEX(*at >= 0 && *at < w.n, "token ", *at, " is outside the ", w.n, " of the embeddings");
      return expand_rows(w, *at, *at + 1, to);
    });
  }

  // Whatever torch has: y = name(arguments), copied to where the others look for it. No y: the operator writes in place.
  bool call(const std::string& name, const std::string& overload, const c10::List<c10::IValue>& arguments,
            const std::vector<Tensor>& y) {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str());
    std::vector<c10::IValue> given;
    for (size_t i = 0; i < arguments.size(); ++i) given.push_back(arguments.get(i));
    held_.insert(held_.end(), y.begin(), y.end());
    return append([op, given, y](const Parallel&) {
      std::vector<c10::IValue> stack = given;
      op.callBoxed(&stack);
      for (size_t i = 0; i < y.size(); ++i) {
        const Tensor made = stack.at(i).toTensor();
        if (made.sizes() != y[i].sizes()) return false;
        y[i].copy_(made);
      }
      return true;
    });
  }

  void run() const {
    const at::AutoDispatchBelowADInplaceOrView guard;
    Crew::run(at::get_num_threads(), [this](const Parallel& p) {
      for (const Instruction& each : code_) TORCH_CHECK(each(p), "an instruction of a decoding step no longer runs");
    });
  }

  int64_t size() const { return int64_t(code_.size()); }

 private:
  template <typename P>
  struct Products {
    Input input;
    std::vector<P> products;
  };
  template <typename P>
  using Open = std::shared_ptr<Products<P>>;
  std::vector<Instruction> code_;
  std::vector<Tensor> held_;
  Open<Product> packed_open_;  // the last instruction, where it may take another product
  Open<SparseProduct> sparse_open_;

  static void alone(int64_t count, const Range& body) { body(0, count); }

  void hold(std::initializer_list<Tensor> tensors) { held_.insert(held_.end(), tensors); }
  void hold(const OptTensor& tensor) { if (tensor) held_.push_back(*tensor); }
  OptTensor held(const OptTensor& bias) {  // as the kernels take it
    const OptTensor wide = bias ? OptTensor(bias->to(at::kFloat).contiguous()) : bias;
    hold(wide);
    return wide;
  }

  bool append(Instruction instruction) {
    packed_open_ = nullptr, sparse_open_ = nullptr;
    if (!instruction(alone)) return false;
    code_.push_back(std::move(instruction));
    return true;
  }

  // Joins the last instruction, where that has products of the same x with codes of as many bits, or becomes one.
  template <typename P, typename Kernel>
  bool product(const Tensor& x, int64_t k, const P& made, Open<P>& open, Kernel kernel) {
    const Input input = input_of(x, k);
    if (open && open->input.data == input.data && open->products[0].w.bits == made.w.bits) {
      return kernel(input, &made, 1, alone) && (open->products.push_back(made), true);
    }
    const auto all = std::make_shared<Products<P>>(Products<P>{input, {made}});
    const bool known = append([all, kernel](const Parallel& p) {
      return kernel(all->input, all->products.data(), int64_t(all->products.size()), p);
    });
    if (known) open = all;
    return known;
  }

  template <typename Kernel>
  bool linear(const Tensor& x, int64_t k, const OptTensor& bias, const Tensor& y, std::initializer_list<Tensor> tensors,
              Kernel kernel) {
    const Output output = output_of(y, held(bias));
    const Input input = input_of(x, k);
    hold({x, y}), hold(tensors);
    return append([input, output, kernel](const Parallel& p) { return kernel(input, output, p); });
  }

  std::optional<Pointwise> described(const std::string& kind, const Tensor& y, const Tensor& a, const OptTensor& b,
                                     double scalar) {
    const auto dtype = y.scalar_type();
    const auto* const found = std::find(std::begin(kKinds), std::end(kKinds), kind);
    const bool alike = a.scalar_type() == dtype && (!b || b->scalar_type() == dtype);
    if (found == std::end(kKinds) || !alike || y.dim() > 4 || a.dim() > 4 || (dtype != at::kFloat && dtype != at::kBFloat16))
      return std::nullopt;
    Pointwise w{Pointwise::Kind(found - kKinds), y.mutable_data_ptr(), a.const_data_ptr(), b ? b->const_data_ptr() : nullptr,
                float(scalar), dtype_of(dtype), {1, 1, 1, 1}, {}, {}, {}};
    for (int64_t d = 0; d < y.dim(); ++d) w.sizes[4 - y.dim() + d] = y.size(d);
    strides_of(y, y, w.y_strides), strides_of(a, y, w.a_strides);
    if (b) strides_of(*b, y, w.b_strides);
    join_dimensions(w);
    hold({y, a}), hold(b);
    return w;
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(compress_kernels, m) {
  m.class_<Program>("Program")
      .def(torch::init<>())
      .def("packed", &Program::packed)
      .def("nf4", &Program::nf4)
      .def("sparse", &Program::sparse)
      .def("int8", &Program::int8)
      .def("gguf", &Program::gguf)
      .def("dense", &Program::dense)
      .def("norm", &Program::norm)
      .def("attention", &Program::attention)
      .def("pointwise", &Program::pointwise)
      .def("put", &Program::put)
      .def("row", &Program::row)
      .def("call", &Program::call)
      .def("run", &Program::run)
      .def("size", &Program::size);
}

}  // namespace ck
