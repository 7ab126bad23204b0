// y = x Wᵀ for W of 2- to 8-bit codes as compressed-tensors packs them, with AVX2.
#include "codes.h"
#include "isa.h"

namespace ck::CK_ISA {
namespace {

__m256i load32(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
__m128i load16(const uint8_t* p) { return _mm_loadu_si128((const __m128i*)p); }

// 32 codes of B bits that do not fill bytes evenly: 16-bit windows, shifted by a product (AVX2 has no shift by lanes of 16 bits).
template <int B>
struct Windows {
  alignas(32) uint8_t byte[2][32];
  alignas(32) uint16_t factor[2][16];
  constexpr Windows() : byte{}, factor{} {
    for (int v = 0; v < 2; ++v)
      for (int i = 0; i < 16; ++i) {
        const int bit = (8 * v + i % 8) * B;  // in its half of sixteen columns, which has a lane of its own
        byte[v][2 * i] = uint8_t(bit / 8);
        byte[v][2 * i + 1] = uint8_t(bit / 8 + 1);
        factor[v][i] = uint16_t(1 << (8 - bit % 8));
      }
  }
};

template <int B>
__m256i unpack(const uint8_t* p) {
  if constexpr (B == 8) {
    return _mm256_xor_si256(load32(p), _mm256_set1_epi8(char(0x80)));
  } else if constexpr (B == 4) {
    const __m256i v = _mm256_broadcastsi128_si256(load16(p));
    return _mm256_and_si256(_mm256_srlv_epi32(v, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)), _mm256_set1_epi8(15));
  } else if constexpr (B == 2) {
    const __m256i v = _mm256_broadcastq_epi64(_mm_loadl_epi64((const __m128i*)p));
    return _mm256_and_si256(_mm256_srlv_epi64(v, _mm256_setr_epi64x(0, 2, 4, 6)), _mm256_set1_epi8(3));
  } else {
    static constexpr Windows<B> windows;
    const __m256i v = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(p + 2 * B), 1);
    __m256i part[2];
    for (int i = 0; i < 2; ++i) {
      const __m256i window = _mm256_shuffle_epi8(v, load32(windows.byte[i]));
      part[i] = _mm256_srli_epi16(_mm256_mullo_epi16(window, load32((const uint8_t*)windows.factor[i])), 8);
      part[i] = _mm256_and_si256(part[i], _mm256_set1_epi16((1 << B) - 1));
    }
    return _mm256_packus_epi16(part[0], part[1]);
  }
}

// Column `width · i + s` is byte i of the s-th share of 32.
template <int Width>
ByteOrder order_of() {
  ByteOrder order;
  for (int i = 0; i < 32; ++i) {
    const int each = 16 / Width, in_half = i % 16;  // shares of a half
    order.shuffle[i] = uint8_t(in_half % each * Width + in_half / each);
  }
  for (int s = 0; s < 8; ++s) {
    const int words = 8 / Width;  // of a share, half of them from each half
    order.words[s] = uint32_t(s % words / (words / 2) * 4 + s / words * (words / 2) + s % (words / 2));
  }
  return order;
}

// Row `row` of scales or zero points [rows or 1, groups] as one float for each of `blocks` blocks of 32 columns.
void load_steps(const PackedWeight& w, int64_t row, const void* data, Dtype dtype, int64_t blocks, float* out) {
  const int64_t base = (w.per_tensor ? 0 : row) * w.groups, each = w.groups == 1 ? blocks : w.group / 32;
  for (int64_t g = 0; g < w.groups; ++g) {
    const float value = load_scalar(data, dtype, base + g);
    for (int64_t b = g * each; b < std::min((g + 1) * each, blocks); ++b) out[b] = value;
  }
}

template <int B>
struct PackedRows final : CodeRows {
  const PackedWeight& weight;
  const int64_t blocks = ceil_div(weight.k, 32);
  explicit PackedRows(const PackedWeight& w) : CodeRows(w.n, w.k, 1, B == 8, B != 8 || w.zero), weight(w) {}
  const ByteOrder& order() const override {
    static const ByteOrder natural{{}, {}, true}, twos = order_of<2>(), fours = order_of<4>();
    return B == 4 ? twos : B == 2 ? fours : natural;
  }
  void codes(int64_t r, int64_t b0, int64_t b1, uint8_t* out) const override {
    const uint8_t *p = weight.codes + r * weight.row_bytes + b0 * 4 * B, *end = weight.codes + weight.n * weight.row_bytes;
    const int64_t ahead = kCodeRows * weight.row_bytes;
    const int64_t whole = std::clamp<int64_t>((end - p - 32) / (4 * B) + 1, 0, b1 - b0);  // loads of 32 bytes stay inside
    int64_t b = 0;
    for (; b < (end - p < 32 ? 0 : whole); ++b, p += 4 * B, out += 32) {
      _mm_prefetch(reinterpret_cast<const char*>(p + ahead), _MM_HINT_T0);
      _mm256_store_si256((__m256i*)out, unpack<B>(p));
    }
    for (; b < b1 - b0; ++b, p += 4 * B, out += 32) {
      alignas(32) uint8_t tail[64] = {};
      std::memcpy(tail, p, std::clamp<int64_t>(end - p, 0, 4 * B));
      _mm256_store_si256((__m256i*)out, unpack<B>(tail));
    }
  }
  void steps(int64_t r, float* step, float* low) const override {
    load_steps(weight, r, weight.scale, weight.scale_dtype, blocks, step);
    const float middle = B == 8 ? 128.f : 0.f;  // taken away already
    if (!weight.zero) {
      const float zero = float(1 << (B - 1)) - middle;
      for (int64_t b = 0; b < blocks; ++b) low[b] = -zero * step[b];
      return;
    }
    load_steps(weight, r, weight.zero, U8, blocks, low);
    for (int64_t b = 0; b < blocks; ++b) low[b] = (middle - low[b]) * step[b];
  }
};

template <int B>
bool linear(const Input& x, const PackedWeight& w, const Output& y, const Parallel& parallel) {
  code_linear(x, PackedRows<B>(w), y, parallel);
  return true;
}

// Eight codes of B bits from eight bytes as int32, in the order of the columns; NF4 (`swapped`) has the first of two in the high half.
__m256i eight_codes(const uint8_t* p, int bits, bool swapped) {
  const __m256i v = _mm256_broadcastq_epi64(_mm_loadl_epi64((const __m128i*)p));
  const int64_t b = bits, one = swapped ? -1 : 1, first = swapped ? b : 0;
  const auto at = [&](int64_t i) { return first + (i % 2 ? i - 1 : i) * b + (i % 2) * one * b; };
  const __m256i low = _mm256_srlv_epi64(v, _mm256_setr_epi64x(at(0), at(1), at(4), at(5)));
  const __m256i high = _mm256_srlv_epi64(v, _mm256_setr_epi64x(at(2), at(3), at(6), at(7)));
  const __m256 both = _mm256_shuffle_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high), 0x88);
  return _mm256_and_si256(_mm256_castps_si256(both), _mm256_set1_epi32((1 << bits) - 1));
}

__m256 look_up(const float* table, __m256i code) {  // of sixteen values
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), code);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), code);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
}

}  // namespace

bool packed_linear(const Input& x, const PackedWeight& w, const Output& y, const Parallel& parallel) {
  if (w.table || x.rows > 8 || (w.groups != 1 && w.group % 32)) return false;
  switch (w.bits) {
    case 2: return linear<2>(x, w, y, parallel);
    case 3: return linear<3>(x, w, y, parallel);
    case 4: return linear<4>(x, w, y, parallel);
    case 5: return linear<5>(x, w, y, parallel);
    case 6: return linear<6>(x, w, y, parallel);
    case 7: return linear<7>(x, w, y, parallel);
    case 8: return linear<8>(x, w, y, parallel);
    default: return false;
  }
}

bool dequantize_rows(const PackedWeight& w, int64_t r0, int64_t r1, float* out) {
  const int64_t group = w.groups == 1 ? w.k : w.group;
  if (w.k % 8 || group % 8) return false;
  const uint8_t* end = w.codes + w.n * w.row_bytes;
  for (int64_t r = r0; r < r1; ++r)
    for (int64_t g = 0; g < w.groups; ++g) {
      const int64_t at = (w.per_tensor ? 0 : r) * w.groups + g;
      const __m256 scale = _mm256_set1_ps(load_scalar(w.scale, w.scale_dtype, at));
      const __m256 zero = _mm256_set1_ps(w.zero ? float(w.zero[at]) : float(1 << (w.bits - 1)));
      const uint8_t* p = w.codes + r * w.row_bytes + g * group / 8 * w.bits;
      for (int64_t k = 0; k < group; k += 8, p += w.bits, out += 8) {
        uint8_t tail[8] = {};
        const bool inside = end - p >= 8;
        if (!inside) std::memcpy(tail, p, end - p);
        const __m256i code = eight_codes(inside ? p : tail, w.bits, w.table != nullptr);
        const __m256 value = w.table ? look_up(w.table, code) : _mm256_sub_ps(_mm256_cvtepi32_ps(code), zero);
        _mm256_storeu_ps(out, _mm256_mul_ps(value, scale));
      }
    }
  return true;
}

}  // namespace ck::CK_ISA
