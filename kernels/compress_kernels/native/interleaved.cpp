// y = x Wᵀ for a few rows of bf16 x and W of 2-, 3-, 4- or 8-bit codes whose words of sixteen rows lie side by side
// (PackedWeight::interleaved), in integers (fixed_point.h).
//
// A lane is a row of W. So one stream of whole cache lines is read, x is broadcast, a scale is a vector, and no sum goes over lanes.
#include "lanes.h"

namespace ck::CK_ISA {
namespace {

constexpr int64_t kStreamAhead = 8192;  // bytes of the one stream that are asked for before they are used

// Codes of sixteen rows, four columns in a lane. Part p has columns 4p … of three bits, else p, p + parts, …
template <int B>
class Unpack {
 public:
  Unpack() {
    if constexpr (B == 3) {
      // Eight codes are 24 bits of a lane; the last eight begin at bit 8 of theirs.
      alignas(64) uint8_t bit[64];
      for (int p = 0; p < 4; ++p) {
        for (int i = 0; i < 64; ++i) bit[i] = uint8_t(i / 4 % 2 * 32 + p / 2 * 8 + p % 2 * 12 + i % 4 * 3);
        shift_[p] = _mm512_load_si512(bit);
      }
    }
  }
  void operator()(const uint8_t* from, __m512i (&codes)[Unit<B>::parts]) const {
    const __m512i first = _mm512_loadu_si512(from);
    if constexpr (B == 8) {
      codes[0] = first;
    } else if constexpr (B == 3) {
      const __m512i second = _mm512_loadu_si512(from + 64), third = _mm512_loadu_si512(from + 128);
      const __m512i eight[4] = {first, _mm512_shrdi_epi32(first, second, 24), _mm512_shrdi_epi32(second, third, 16), third};
#pragma GCC unroll 8
      for (int p = 0; p < 8; ++p)
        codes[p] = _mm512_and_si512(_mm512_multishift_epi64_epi8(shift_[p / 6 * 2 + p % 2], eight[p / 2]), mask_);
    } else {
#pragma GCC unroll 4
      for (int p = 0; p < Unit<B>::parts; ++p) codes[p] = _mm512_and_si512(p ? _mm512_srli_epi16(first, p * B) : first, mask_);
    }
  }

 private:
  const __m512i mask_ = _mm512_set1_epi8(char((1 << B) - 1));
  __m512i shift_[B == 3 ? 4 : 1];
};

// Zero points of sixteen rows.
inline __m512i load_zeros(const PackedWeight& w, int64_t block, int64_t group) {
  if (w.per_tensor) return _mm512_set1_epi32(w.zero[group]);
  return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(w.zero + (block * w.groups + group) * 16)));
}

// total[m] = sixteen rows of W · row (m0 + m) of x.
template <int B, int M>
void dot_block(const PackedWeight& w, const Columns<B>& x, const Unpack<B>& unpack, int64_t block, int64_t m0, __m512 (&total)[M]) {
  using U = Unit<B>;
  constexpr int chains = M == 1 ? 2 : 1;  // of sums that do not wait for each other
  const uint8_t* codes = w.codes + block * 16 * w.row_bytes;
  const int32_t* digits[M];
  for (int m = 0; m < M; ++m) digits[m] = x.row(m0 + m), total[m] = _mm512_setzero_ps();
  const int64_t in_span = x.span / U::columns, spans_of_group = w.groups == 1 ? x.spans : w.group / x.span;
  for (int64_t s = 0, group = 0, left = spans_of_group; s < x.spans; ++s) {
    __m512i high[M][chains], low[M][chains];
    for (int m = 0; m < M; ++m)
      for (int c = 0; c < chains; ++c) high[m][c] = low[m][c] = _mm512_setzero_si512();
    const auto step = [&](int64_t u, int turn) __attribute__((always_inline)) {
#pragma GCC unroll 3
      for (int i = 0; i < U::words; ++i)
        _mm_prefetch(reinterpret_cast<const char*>(codes + u * U::bytes + 64 * i + kStreamAhead), _MM_HINT_T0);
      __m512i c[U::parts];
      unpack(codes + u * U::bytes, c);
#pragma GCC unroll 8
      for (int p = 0; p < U::parts; ++p)
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const int32_t* of = digits[m] + (u * U::parts + p) * 2;
          __m512i &h = high[m][(turn + p) % chains], &l = low[m][(turn + p) % chains];
          h = _mm512_dpbusd_epi32(h, c[p], _mm512_set1_epi32(of[0]));
          l = _mm512_dpbusd_epi32(l, c[p], _mm512_set1_epi32(of[1]));
        }
    };
    const int64_t units = std::min(in_span, x.units - s * in_span);
    int64_t u = 0;
    for (; u + 2 <= units; u += 2) step(u, 0), step(u + 1, 1);
    if (u < units) step(u, 0);
    codes += units * U::bytes;
    const __m512 scale = load_sixteen(w, block, group);
    const __m512i zero = w.zero ? load_zeros(w, block, group) : _mm512_set1_epi32(1 << (B - 1));
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      if (chains == 2) high[m][0] = _mm512_add_epi32(high[m][0], high[m][chains - 1]), low[m][0] = _mm512_add_epi32(low[m][0], low[m][chains - 1]);
      const int64_t of = (m0 + m) * x.spans + s;
      const __m512i owed = w.zero ? _mm512_mullo_epi32(zero, _mm512_set1_epi32(x.sum[of])) : _mm512_set1_epi32(x.sum[of] << (B - 1));
      const __m512i sum = _mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32(high[m][0], 8), low[m][0]), owed);
      total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale, _mm512_set1_ps(x.step[of])), total[m]);
      digits[m] += units * U::parts * 2;
    }
    if (--left == 0) ++group, left = spans_of_group;
  }
}

template <int B, int M>
void store_block(const Product& p, const Columns<B>& x, const Unpack<B>& unpack, int64_t block, int64_t m0) {
  __m512 total[M];
  dot_block<B, M>(p.w, x, unpack, block, m0, total);
  for (int m = 0; m < M; ++m) store_rows(p.y, m0 + m, block * 16, 16, total[m]);
}

// All rows of x with one block, which stays in the first cache meanwhile: eight at once, then four, and what is left.
template <int B>
void multiply_block(const Product& p, const Columns<B>& x, const Unpack<B>& unpack, int64_t block) {
  int64_t m = 0;
  for (; m + 8 <= x.rows; m += 8) store_block<B, 8>(p, x, unpack, block, m);
  if (m + 4 <= x.rows) store_block<B, 4>(p, x, unpack, block, m), m += 4;
  switch (x.rows - m) {
    case 1: return store_block<B, 1>(p, x, unpack, block, m);
    case 2: return store_block<B, 2>(p, x, unpack, block, m);
    case 3: return store_block<B, 3>(p, x, unpack, block, m);
    default: return;
  }
}

template <int B>
bool linear(const Input& x, const Product* products, int64_t count, const Parallel& parallel) {
  int64_t groups = 0;
  for (int64_t i = 0; i < count; ++i)
    if (products[i].w.groups > 1) groups = std::gcd(groups, products[i].w.group);
  const int64_t span = span_of(groups, Unit<B>::columns);
  if (!span) return false;
  const Unpack<B> unpack;
  by_rows(x, products, count, [&](const Input& rows, const Product* to) {
    const Columns<B> columns(rows, span, parallel);
    share_blocks(to, count, 16, parallel, [&](const Product& p, int64_t b) { multiply_block<B>(p, columns, unpack, b); });
  });
  return true;
}

}  // namespace

bool plain_block(const uint8_t* in, int64_t words, uint8_t* out) {
  const auto* from = reinterpret_cast<const uint32_t*>(in);
  auto* to = reinterpret_cast<uint32_t*>(out);
  int64_t j = 0;
  for (; j + 16 <= words; j += 16) transpose_16x16(from + j * 16, 16, to + j, words);
  for (; j < words; ++j)
    for (int64_t r = 0; r < 16; ++r) to[r * words + j] = from[j * 16 + r];
  return true;
}

bool interleaved_products(const Input& x, const Product* products, int64_t count, const Parallel& parallel) {
  const int bits = products[0].w.bits;
  for (int64_t i = 0; i < count; ++i)
    if (products[i].w.bits != bits || !products[i].w.interleaved) return false;
  if (x.dtype != BF16 || (kMultipliesBf16 && x.rows > kFewRows)) return false;
  switch (bits) {
    case 2: return linear<2>(x, products, count, parallel);
    case 3: return linear<3>(x, products, count, parallel);
    case 4: return linear<4>(x, products, count, parallel);
    case 8: return linear<8>(x, products, count, parallel);
    default: return false;
  }
}

}  // namespace ck::CK_ISA
