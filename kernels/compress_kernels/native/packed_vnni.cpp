// y = x Wᵀ for a few rows of bf16 x and W of 2- to 8-bit codes, in integers (fixed_point.h).
//
// vpdpbusd multiplies 64 codes with 64 bytes of x where vdpbf16ps, at half its rate on many CPUs, multiplies 32, and codes of
// 2, 4 and 8 bits need no table: a shift and a mask.
#include "fixed_point.h"

namespace ck::CK_ISA {
namespace {

constexpr int kRows = 4;  // of W at once

// Where each of 64 codes of a part begins, for codes that cross bytes: those of two lanes go to one 64-bit word.
template <int B>
struct Spread {
  __m512i from, shift[Codes<B>::parts];
  Spread() {
    constexpr int parts = Codes<B>::parts, width = B * parts;  // bytes of a word
    alignas(64) uint8_t at[64], bit[64];
    for (int i = 0; i < 64; ++i) at[i] = uint8_t(i / 8 * width + std::min(i % 8, width - 1));
    from = _mm512_load_si512(at);
    for (int p = 0; p < parts; ++p) {
      for (int i = 0; i < 64; ++i) bit[i] = uint8_t(B * (i % 8 / 4 * 4 * parts + 4 * p + i % 4));
      shift[p] = _mm512_load_si512(bit);
    }
  }
};

template <int B>
inline void unpack(__m512i raw, const Spread<B>& spread, __m512i (&codes)[Codes<B>::parts]) {
  const __m512i mask = _mm512_set1_epi8(char((1 << B) - 1));
  if constexpr (B == 8) {
    codes[0] = raw;
  } else if constexpr (Codes<B>::whole) {
#pragma GCC unroll 4
    for (int p = 0; p < Codes<B>::parts; ++p) codes[p] = _mm512_and_si512(p ? _mm512_srli_epi16(raw, p * B) : raw, mask);
  } else {
    const __m512i words = _mm512_permutexvar_epi8(spread.from, raw);
#pragma GCC unroll 2
    for (int p = 0; p < Codes<B>::parts; ++p)
      codes[p] = _mm512_and_si512(_mm512_multishift_epi64_epi8(spread.shift[p], words), mask);
  }
}

// total[r][m] = row (row + r) of W · row m of x, not yet summed over the lanes.
template <int B, int M>
void dot_rows(const Groups<PackedWeight>& groups, const Digits<B>& x, const Spread<B>& spread, int64_t row, __m512 (&total)[kRows][M]) {
  using C = Codes<B>;
  constexpr int R = kRows;
  const PackedWeight& w = groups.w;
  const int64_t vectors = x.vectors;
  const uint8_t* codes[R];
  for (int r = 0; r < R; ++r) {
    codes[r] = w.codes + std::min(row + r, w.n - 1) * w.row_bytes;
    for (int m = 0; m < M; ++m) total[r][m] = _mm512_setzero_ps();
  }
  __m512 factor[R][M];
  auto step = [&](int64_t v, const int32_t* lanes, int64_t ahead, __mmask64 mask, auto masked) __attribute__((always_inline)) {
    const __m512i lane = _mm512_load_si512(lanes);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const uint8_t* from = codes[r] + v * C::bytes;
      _mm_prefetch(reinterpret_cast<const char*>(from + ahead), _MM_HINT_T0);
      __m512i c[C::parts];
      unpack<B>(decltype(masked)::value ? _mm512_maskz_loadu_epi8(mask, from) : _mm512_loadu_si512(from), spread, c);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const int64_t place = (m * vectors + v) * C::columns;
        __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int p = 0; p < C::parts; ++p) sum = _mm512_dpbusd_epi32(sum, c[p], _mm512_load_si512(x.high + place + 64 * p));
        sum = _mm512_slli_epi32(sum, 8);
#pragma GCC unroll 4
        for (int p = 0; p < C::parts; ++p) sum = _mm512_dpbusd_epi32(sum, c[p], _mm512_load_si512(x.low + place + 64 * p));
        total[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_permutexvar_ps(lane, factor[r][m]), total[r][m]);
      }
    }
  };
  // Loads of 64 bytes may reach into the next rows, not beyond the weight; what they find there meets zeros of x.
  const int64_t left = (w.n - std::min(row + R, w.n)) * w.row_bytes + w.row_bytes - 64;
  const int64_t safe = left < 0 ? 0 : std::min(vectors, left / C::bytes + 1);
  const int64_t near = std::clamp<int64_t>((w.row_bytes - kAhead) / C::bytes, 0, safe);
  for (int64_t v0 = 0, turn = 0; v0 < vectors; v0 += x.turn, ++turn) {
    const int64_t v1 = std::min(v0 + x.turn, vectors);
    for (int r = 0; r < R; ++r) {
      const int64_t at = std::min(row + r, w.n - 1);
      const __m512 scale = groups.load(w.scale, w.scale_dtype, at, turn);
      const __m512 zero = w.zero ? groups.load(w.zero, U8, at, turn) : _mm512_set1_ps(float(1 << (B - 1)));
      for (int m = 0; m < M; ++m) {
        const int64_t of = m * x.spans + turn * 16;
        factor[r][m] = _mm512_mul_ps(scale, _mm512_load_ps(x.step + of));
        total[r][m] = _mm512_fnmadd_ps(_mm512_mul_ps(zero, _mm512_load_ps(x.sum + of)), factor[r][m], total[r][m]);
      }
    }
    const int32_t* lanes = x.lane - v0 * 16;
    int64_t v = v0;
    for (; v < std::min(v1, near); ++v) step(v, lanes + v * 16, kAhead, 0, std::false_type{});
    // What follows the end of these rows is the beginning of the next.
    for (; v < std::min(v1, safe); ++v) step(v, lanes + v * 16, kAhead + (R - 1) * w.row_bytes, 0, std::false_type{});
    for (; v < v1; ++v) {
      const int64_t rest = std::min(C::bytes, w.row_bytes - v * C::bytes);
      step(v, lanes + v * 16, 0, rest >= 64 ? ~0ull : (1ull << rest) - 1, std::true_type{});
    }
  }
}

template <int B, int M>
void rows_of(const Input& x, const Product* products, int64_t count, int64_t span, const Parallel& parallel) {
  const Digits<B> digits(x, span);
  const Spread<B> spread;
  int64_t blocks = 0;
  for (int64_t i = 0; i < count; ++i) blocks += ceil_div(products[i].w.n, 16);
  parallel(blocks, [&](int64_t b0, int64_t b1) {
    int64_t from = 0;
    for (int64_t i = 0; i < count; ++i) {  // each weight has its share of the blocks
      const auto& [w, y] = products[i];
      const int64_t its = ceil_div(w.n, 16), first = std::max(b0 - from, int64_t(0)), last = std::min(b1 - from, its);
      from += its;
      if (first >= last) continue;
      const Groups<PackedWeight> groups(w, span, digits.spans / 16);
      for (int64_t row = first * 16; row < std::min(last * 16, w.n); row += 16) {
        __m512 total[M][16], four[kRows][M];
        for (int part = 0; part < 16; part += kRows) {
          if (row + part < w.n) dot_rows<B, M>(groups, digits, spread, row + part, four);
          for (int r = 0; r < kRows; ++r)
            for (int m = 0; m < M; ++m) total[m][part + r] = four[r][m];
        }
        for (int m = 0; m < M; ++m) store_rows(y, m, row, std::min<int64_t>(16, w.n - row), sum_each(total[m]));
      }
    }
  });
}

template <int B>
bool linear(const Input& x, const Product* products, int64_t count, const Parallel& parallel) {
  int64_t groups = 0;
  for (int64_t i = 0; i < count; ++i)
    if (products[i].w.groups > 1) groups = std::gcd(groups, products[i].w.group);
  const int64_t span = span_of(groups, Codes<B>::lane);
  if (!span) return false;
  switch (x.rows) {
    case 1: return rows_of<B, 1>(x, products, count, span, parallel), true;
    case 2: return rows_of<B, 2>(x, products, count, span, parallel), true;
    case 3: return rows_of<B, 3>(x, products, count, span, parallel), true;
    case 4: return rows_of<B, 4>(x, products, count, span, parallel), true;
    default: return false;
  }
}

}  // namespace

bool packed_integers(const Input& x, const Product* products, int64_t count, const Parallel& parallel) {
  const PackedWeight& w = products[0].w;
  for (int64_t i = 0; i < count; ++i)
    if (products[i].w.bits != w.bits || products[i].w.table || products[i].w.interleaved) return false;
  if (x.dtype != BF16) return false;
  switch (w.bits) {
    case 2: return linear<2>(x, products, count, parallel);
    case 3: return linear<3>(x, products, count, parallel);
    case 4: return linear<4>(x, products, count, parallel);
    case 5: return linear<5>(x, products, count, parallel);
    case 6: return linear<6>(x, products, count, parallel);
    case 7: return linear<7>(x, products, count, parallel);
    case 8: return linear<8>(x, products, count, parallel);
    default: return false;
  }
}

}  // namespace ck::CK_ISA
