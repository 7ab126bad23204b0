// y = x Wᵀ for a few rows of bf16 x and 4-bit codes under a bit mask as pairs of rows (SparseWeight::pairs), in integers
// (fixed_point.h).
//
// A byte has the codes of rows r and r + 16 in one column, and is missing where both are pruned; so one vpexpandb, which costs as much
// as two products, puts 128 codes where they belong. The products of the byte as it lies are those of the first row and sixteen times
// those of the second.
#include "lanes.h"
#include "pairs.h"

namespace ck::CK_ISA {
namespace {

using X = Columns<8>;  // four neighbouring columns

constexpr int64_t kStreamAhead = 3072;  // bytes that are asked for before they are used
constexpr int kMostRows = 4;            // of x at once
constexpr int kLanes = 16;

// A mask from memory: a detour through a register takes one of the ports that multiply.
inline __mmask64 load_mask(const uint8_t* p) {
  __mmask64 mask;
  asm("kmovq %1, %0" : "=k"(mask) : "m"(*reinterpret_cast<const uint64_t(*)>(p)));
  return mask;
}

inline int64_t count_bits(const uint8_t* p) {
  uint64_t bits;
  std::memcpy(&bits, p, 8);
  return _mm_popcnt_u64(bits);
}

// Zero points of sixteen rows.
inline __m128i zero_bytes(const SparseWeight& w, int64_t half, int64_t group) {
  if (!w.zero) return _mm_set1_epi8(8);
  if (w.per_tensor) return _mm_set1_epi8(char(w.zero[group]));
  return _mm_loadu_si128((const __m128i*)(w.zero + (half * w.groups + group) * kLanes));
}

// What stands where a pair keeps nothing: a byte for each lane, and the same four times.
struct Pruned {
  __m128i bytes;
  __m512i lanes;
  Pruned(const SparseWeight& w, int64_t block, int64_t group) {
    const __m128i first = zero_bytes(w, 2 * block, group), second = zero_bytes(w, second_half(w, block), group);
    bytes = _mm_or_si128(first, _mm_slli_epi16(second, 4));
    lanes = _mm512_shuffle_epi8(_mm512_cvtepu8_epi32(bytes), _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0));
  }
  __m512 zero(int half) const {
    const __m512i of = half ? _mm512_srli_epi32(lanes, 4) : lanes;
    return _mm512_cvtepi32_ps(_mm512_and_si512(of, _mm512_set1_epi32(15)));
  }
  // Where the number of rows is odd times sixteen, the last block has its first half twice.
  static int64_t second_half(const SparseWeight& w, int64_t block) { return std::min(2 * block + 1, w.n / kLanes - 1); }
};

// Four columns of all pairs of a block.
inline __m512i load_pairs(const uint8_t* mask, const uint8_t*& from, __m512i pruned) {
  __m512i kept = _mm512_loadu_si512(from);
  asm("" : "+v"(kept));  // vpexpandb straight from memory is slow
  from += count_bits(mask);
  return _mm512_mask_expand_epi8(pruned, load_mask(mask), kept);
}

// total[h][m] = sixteen rows (half h of the block) of W · row (m0 + m) of x.
template <int M>
void dot_block(const SparseWeight& w, const X& x, int64_t block, int64_t m0, __m512 (&total)[2][M]) {
  const uint8_t* from = w.values + w.start[block];
  const __m512i lower = _mm512_set1_epi8(15);
  const int32_t* digits[M];
  for (int m = 0; m < M; ++m) digits[m] = x.row(m0 + m), total[0][m] = total[1][m] = _mm512_setzero_ps();
  const int64_t spans_of_group = w.groups == 1 ? x.spans : w.group / x.span;
  for (int64_t s = 0, group = 0, left = spans_of_group; s < x.spans; ++s) {
    __m512i high[2][M], low[2][M];  // of the first half, and of both as they lie
    for (int m = 0; m < M; ++m) high[0][m] = high[1][m] = low[0][m] = low[1][m] = _mm512_setzero_si512();
    const Pruned pruned(w, block, group);
    const int64_t columns = std::min(x.span, w.k - s * x.span);
    for (int64_t c = 0; c < columns; c += kPairedColumns) {
      const uint8_t* const masks = from;
      from += 64;
#pragma GCC unroll 8
      for (int u = 0; u < 8; ++u) {
        if (u < 7) _mm_prefetch(reinterpret_cast<const char*>(masks + kStreamAhead + 64 * u), _MM_HINT_T0);
        const __m512i both = load_pairs(masks + 8 * u, from, pruned.lanes), first = _mm512_and_si512(both, lower);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
          const int32_t* of = digits[m] + c / 2 + 2 * u;
          const __m512i upper_digit = _mm512_set1_epi32(of[0]), lower_digit = _mm512_set1_epi32(of[1]);
          high[0][m] = _mm512_dpbusd_epi32(high[0][m], first, upper_digit);
          low[0][m] = _mm512_dpbusd_epi32(low[0][m], first, lower_digit);
          high[1][m] = _mm512_dpbusd_epi32(high[1][m], both, upper_digit);
          low[1][m] = _mm512_dpbusd_epi32(low[1][m], both, lower_digit);
        }
      }
    }
    const __m512 scale[2] = {load_sixteen(w, 2 * block, group), load_sixteen(w, Pruned::second_half(w, block), group)};
    const __m512 zero[2] = {pruned.zero(0), pruned.zero(1)};
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      __m512i sum[2];
      for (int h = 0; h < 2; ++h) sum[h] = _mm512_add_epi32(_mm512_slli_epi32(high[h][m], 8), low[h][m]);
      sum[1] = _mm512_srai_epi32(_mm512_sub_epi32(sum[1], sum[0]), 4);
      const int64_t of = (m0 + m) * x.spans + s;
      const __m512 step = _mm512_set1_ps(x.step[of]), owed = _mm512_set1_ps(float(x.sum[of]));
      for (int h = 0; h < 2; ++h) {
        const __m512 centred = _mm512_fnmadd_ps(zero[h], owed, _mm512_cvtepi32_ps(sum[h]));
        total[h][m] = _mm512_fmadd_ps(centred, _mm512_mul_ps(scale[h], step), total[h][m]);
      }
      digits[m] += columns / 2;
    }
    if (--left == 0) ++group, left = spans_of_group;
  }
}

template <int M>
void store_block(const SparseProduct& p, const X& x, int64_t block, int64_t m0) {
  __m512 total[2][M];
  dot_block<M>(p.w, x, block, m0, total);
  for (int h = 0; h < 2; ++h)
    if ((2 * block + h) * kLanes < p.w.n)
      for (int m = 0; m < M; ++m) store_rows(p.y, m0 + m, (2 * block + h) * kLanes, kLanes, total[h][m]);
}

// All rows of x with one block, which stays in the first cache meanwhile.
void multiply_block(const SparseProduct& p, const X& x, int64_t block) {
  for (int64_t m = 0; m < x.rows; m += kMostRows) switch (x.rows - m) {
    case 1: store_block<1>(p, x, block, m); break;
    case 2: store_block<2>(p, x, block, m); break;
    case 3: store_block<3>(p, x, block, m); break;
    default: store_block<kMostRows>(p, x, block, m);
  }
}

}  // namespace

bool pair_products(const Input& x, const SparseProduct* products, int64_t count, const Parallel& parallel) {
  int64_t groups = 0;
  for (int64_t i = 0; i < count; ++i) {
    const SparseWeight& w = products[i].w;
    if (!w.pairs()) return false;
    if (w.groups > 1) groups = std::gcd(groups, w.group);
  }
  const int64_t span = span_of(groups, kPairedColumns);
  if (!span || x.dtype != BF16 || (kMultipliesBf16 && x.rows > kFewRows)) return false;
  by_rows(x, products, count, [&](const Input& rows, const SparseProduct* to) {
    const X columns(rows, span, parallel);
    share_blocks(to, count, kPairedRows, parallel, [&](const SparseProduct& p, int64_t b) { multiply_block(p, columns, b); });
  });
  return true;
}

void write_out(const SparseWeight& w, int64_t block, uint8_t* out) {
  const uint8_t* from = w.values + w.start[block];
  const __m512i lower = _mm512_set1_epi8(15), two = _mm512_set1_epi16(0x1001), four = _mm512_set1_epi32(0x01000001);
  const auto codes = [&](__m512i bytes) { return _mm512_madd_epi16(_mm512_maddubs_epi16(bytes, two), four); };  // of four columns
  for (int64_t c = 0; c < w.k; c += kPairedColumns) {
    const Pruned pruned(w, block, w.groups == 1 ? 0 : c / w.group);
    const uint8_t* const masks = from;
    from += 64;
    for (int u = 0; u < 8; u += 2) {
      const __m512i a = load_pairs(masks + 8 * u, from, pruned.lanes), b = load_pairs(masks + 8 * u + 8, from, pruned.lanes);
      for (int h = 0; h < 2; ++h) {
        const __m512i four_a = codes(_mm512_and_si512(h ? _mm512_srli_epi16(a, 4) : a, lower));
        const __m512i four_b = codes(_mm512_and_si512(h ? _mm512_srli_epi16(b, 4) : b, lower));
        _mm512_storeu_si512(out + h * w.k * 8 + (c / 8 + u / 2) * 64, _mm512_or_si512(four_a, _mm512_slli_epi32(four_b, 16)));
      }
    }
  }
}

}  // namespace ck::CK_ISA
