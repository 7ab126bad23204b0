// y = x Wᵀ for a few rows of bf16 x and 2:4 weights of 4-bit codes whose words of sixteen rows lie side by side
// (SparseWeight::interleaved), in integers (fixed_point.h).
//
// A lane is a row of W. Nothing is put where it belongs: the places of the kept codes choose bytes of x (vpshufb), so that half of the
// products are never made. Codes come as signed numbers, sixteen times as large; so x is 32768 too large, as bytes without signs.
#include "fixed_point.h"

namespace ck::CK_ISA {
namespace {

constexpr int64_t kCodesAhead = 8192;   // bytes of codes that are asked for before they are used; of places half as many
constexpr int64_t kUnit = 32;           // columns that one vector of places has
constexpr int kMostRows = 4;            // of x at once

// x in fixed point plus 32768, upper and lower bytes of sixteen columns beside each other.
struct Columns {
  const int64_t rows, span, spans;
  uint8_t* digits;  // [rows][k / 16][2][16]
  float* step;      // [rows][spans], a sixteenth
  Columns(const Input& x, int64_t span_, const Parallel& parallel)
      : rows(x.rows), span(span_), spans(ceil_div(x.k, span)), k_(x.k), room_(x.rows * (2 * x.k + 4 * spans)) {
    digits = room_.data, step = reinterpret_cast<float*>(digits + x.rows * 2 * x.k);
    const auto round = [&](int64_t m0, int64_t m1) {
      for (int64_t m = m0; m < m1; ++m) round_row(x, m);
    };
    x.rows > kFewRows ? parallel(x.rows, round) : round(0, x.rows);
  }
  uint8_t* row(int64_t m) const { return digits + m * 2 * k_; }

 private:
  const int64_t k_;
  Buffer<uint8_t> room_;

  void round_row(const Input& x, int64_t m) {
    alignas(64) int8_t lower[2 * kSpan], upper[2 * kSpan];
    for (int64_t s = 0; s < spans; ++s) {
      const int64_t at = s * span, count = std::min(span, k_ - at);
      round_span<true>(x, m, at, count, lower, upper, step[m * spans + s]);
      step[m * spans + s] /= 16;
      for (int64_t c = 0; c < count; c += 16) {
        std::memcpy(row(m) + 2 * (at + c), upper + c, 16);
        std::memcpy(row(m) + 2 * (at + c) + 16, lower + c, 16);
      }
    }
  }
};

// Bytes of sixteen columns that a lane's kept codes are multiplied with: part p has the p-th of every two that are kept of four.
class Places {
 public:
  Places() {
    alignas(64) uint8_t bit[64];
    for (int q = 0; q < 4; ++q) {
      for (int i = 0; i < 64; ++i) bit[i] = uint8_t(i / 4 % 2 * 32 + q / 2 * 16 + i % 4 * 4 + q % 2 * 2);
      shift_[q] = _mm512_load_si512(bit);
    }
  }
  __m512i operator()(__m512i places, int half, int part) const {
    const __m512i two = _mm512_multishift_epi64_epi8(shift_[2 * half + part], places);
    return _mm512_ternarylogic_epi32(two, _mm512_set1_epi8(3), _mm512_set1_epi32(0x0c080400), 0xea);  // (two & 3) | 4 · byte
  }

 private:
  __m512i shift_[4];
};

inline __m512i sixteen_bytes(const uint8_t* p) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p)); }

// total[m] = sixteen rows of W · row (m0 + m) of x.
template <int M>
void dot_block(const SparseWeight& w, const Columns& x, const Places& places, int64_t block, int64_t m0, __m512 (&total)[M]) {
  constexpr int chains = M == 1 ? 2 : 1;  // of sums that do not wait for each other
  const __m512i upper = _mm512_set1_epi8(char(0xf0)), one = _mm512_set1_epi8(1);
  const uint8_t *code = w.values + block * w.k * 4, *place = w.mask + block * w.k * 2;
  const uint8_t* digits[M];
  for (int m = 0; m < M; ++m) digits[m] = x.row(m0 + m), total[m] = _mm512_setzero_ps();
  const int64_t spans_of_group = w.groups == 1 ? x.spans : w.group / x.span;
  for (int64_t s = 0, group = 0, left = spans_of_group; s < x.spans; ++s) {
    __m512i high[M][chains], low[M][chains], codes[2];
    codes[0] = codes[1] = _mm512_setzero_si512();
    for (int m = 0; m < M; ++m)
      for (int c = 0; c < chains; ++c) high[m][c] = low[m][c] = _mm512_setzero_si512();
    const int64_t units = std::min(x.span, w.k - s * x.span) / kUnit;
    for (int64_t u = 0; u < units; ++u, code += 128, place += 64) {
      for (int64_t line : {0, 64}) _mm_prefetch(reinterpret_cast<const char*>(code + line + kCodesAhead), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(place + kCodesAhead / 2), _MM_HINT_T0);
      const __m512i kept = _mm512_loadu_si512(place);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m512i pairs = _mm512_loadu_si512(code + 64 * half);
#pragma GCC unroll 2
        for (int part = 0; part < 2; ++part) {
          const __m512i c = _mm512_and_si512(part ? pairs : _mm512_slli_epi16(pairs, 4), upper), at = places(kept, half, part);
          codes[part] = _mm512_dpbusd_epi32(codes[part], one, c);
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m) {
            const uint8_t* from = digits[m] + (2 * u + half) * 32;
            __m512i &h = high[m][part % chains], &l = low[m][part % chains];
            h = _mm512_dpbusd_epi32(h, _mm512_shuffle_epi8(sixteen_bytes(from), at), c);
            l = _mm512_dpbusd_epi32(l, _mm512_shuffle_epi8(sixteen_bytes(from + 16), at), c);
          }
        }
      }
    }
    const __m512 scale = load_sixteen(w, block, group);
    const __m512i owed = _mm512_slli_epi32(_mm512_add_epi32(codes[0], codes[1]), 15);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      if (chains == 2) high[m][0] = _mm512_add_epi32(high[m][0], high[m][chains - 1]), low[m][0] = _mm512_add_epi32(low[m][0], low[m][chains - 1]);
      const __m512i sum = _mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32(high[m][0], 8), low[m][0]), owed);
      const __m512 step = _mm512_set1_ps(x.step[(m0 + m) * x.spans + s]);
      total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale, step), total[m]);
      digits[m] += units * kUnit * 2;
    }
    if (--left == 0) ++group, left = spans_of_group;
  }
}

template <int M>
void store_block(const SparseProduct& p, const Columns& x, const Places& places, int64_t block, int64_t m0) {
  __m512 total[M];
  dot_block<M>(p.w, x, places, block, m0, total);
  for (int m = 0; m < M; ++m) store_rows(p.y, m0 + m, block * 16, 16, total[m]);
}

// All rows of x with one block, which stays in the first cache meanwhile.
void multiply_block(const SparseProduct& p, const Columns& x, const Places& places, int64_t block) {
  for (int64_t m = 0; m < x.rows; m += kMostRows) switch (x.rows - m) {
    case 1: store_block<1>(p, x, places, block, m); break;
    case 2: store_block<2>(p, x, places, block, m); break;
    case 3: store_block<3>(p, x, places, block, m); break;
    default: store_block<kMostRows>(p, x, places, block, m);
  }
}

}  // namespace

bool interleaved_products(const Input& x, const SparseProduct* products, int64_t count, const Parallel& parallel) {
  int64_t groups = 0;
  for (int64_t i = 0; i < count; ++i) {
    const SparseWeight& w = products[i].w;
    if (!w.interleaved || w.pairs()) return false;
    if (w.groups > 1) groups = std::gcd(groups, w.group);
  }
  const int64_t span = span_of(groups, kUnit);
  if (!span || x.dtype != BF16 || (kMultipliesBf16 && x.rows > kFewRows)) return false;
  const Places places;
  by_rows(x, products, count, [&](const Input& rows, const SparseProduct* to) {
    const Columns columns(rows, span, parallel);
    share_blocks(to, count, 16, parallel, [&](const SparseProduct& p, int64_t b) { multiply_block(p, columns, places, b); });
  });
  return true;
}

}  // namespace ck::CK_ISA
