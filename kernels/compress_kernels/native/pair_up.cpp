// 4-bit codes under a bit mask, as they lie on disk, to pairs of rows (SparseWeight::pairs).
#include "fixed_point.h"
#include "pairs.h"

namespace ck::CK_ISA {
namespace {

constexpr char kKept = char(0x80);  // beside a code in a byte

// Thirty-two bytes of a stream, zeros beyond its end.
inline __m256i load_bytes(const SparseWeight& w, int64_t at) {
  return _mm256_maskz_loadu_epi8(low_words(w.value_bytes - at), w.values + at);
}

// The 64 codes from the given one on as bytes.
inline __m512i load_codes(const SparseWeight& w, int64_t first) {
  __m256i pairs = load_bytes(w, first / 2);
  if (first % 2) {
    const __m256i next = load_bytes(w, first / 2 + 1);
    pairs = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(pairs, 4), _mm256_set1_epi8(15)),
                            _mm256_andnot_si256(_mm256_set1_epi8(15), _mm256_slli_epi16(next, 4)));
  }
  const __m512i words = _mm512_cvtepu8_epi16(pairs);
  return _mm512_and_si512(_mm512_or_si512(words, _mm512_slli_epi16(words, 4)), _mm512_set1_epi8(15));
}

// Zero points of columns c … c + 63, of which every 32 lie in one group.
inline __m512i load_zeros(const SparseWeight& w, int64_t row, int64_t c) {
  const auto zero = [&](int64_t column) -> char {
    const int64_t group = w.groups == 1 ? 0 : std::min(column / w.group, w.groups - 1);
    return w.zero ? char(w.zero[(w.per_tensor ? 0 : row * w.groups) + group]) : char(8);
  };
  return _mm512_inserti64x4(_mm512_set1_epi8(zero(c)), _mm256_set1_epi8(zero(c + 32)), 1);
}

// One row as bytes, zero points where nothing is kept; returns through `found` the columns that keep their zero point.
template <typename Found>
void spread_row(const SparseWeight& w, int64_t row, uint8_t* out, const Found& found) {
  int64_t at = w.start[row] / 4;
  for (int64_t c = 0; c < w.k; c += 64) {
    uint64_t mask = 0;
    std::memcpy(&mask, w.mask + row * w.mask_bytes + c / 8, size_t(std::min<int64_t>(8, w.mask_bytes - c / 8)));
    const __m512i codes = load_codes(w, at), zeros = load_zeros(w, row, c);
    at += _mm_popcnt_u64(mask);
    const __m512i spread = _mm512_mask_expand_epi8(zeros, mask, codes);
    for (uint64_t same = _mm512_mask_cmpeq_epi8_mask(mask, spread, zeros); same; same &= same - 1) found(c + __builtin_ctzll(same));
    _mm512_storeu_si512(out + c, _mm512_or_si512(spread, _mm512_maskz_set1_epi8(mask, kKept)));
  }
}

// Sixteen rows of 64 columns: vector u has columns 4u … of all of them.
inline void load_tile(const uint8_t* rows, int64_t stride, __m512i (&tile)[16]) {
  for (int r = 0; r < 16; ++r) tile[r] = _mm512_loadu_si512(rows + r * stride);
  transpose_16x16(tile);
}

// Eight masks and the pairs that they keep, of 32 columns.
inline void append(const __m512i* first, const __m512i* second, std::vector<uint8_t>& out) {
  const __m512i lower = _mm512_set1_epi8(15);
  const size_t begin = out.size();
  out.resize(begin + 64 + 8 * 64);
  uint8_t *masks = out.data() + begin, *to = masks + 64;
  for (int u = 0; u < 8; ++u, masks += 8) {
    const uint64_t kept = _mm512_movepi8_mask(_mm512_or_si512(first[u], second[u]));
    const __m512i upper = _mm512_andnot_si512(lower, _mm512_slli_epi16(second[u], 4));
    std::memcpy(masks, &kept, 8);
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi8(kept, _mm512_or_si512(_mm512_and_si512(first[u], lower), upper)));
    to += _mm_popcnt_u64(kept);
  }
  out.resize(size_t(to - out.data()));
}

}  // namespace

bool pair_up(const SparseWeight& w, Paired& out) {
  const int64_t stride = ceil_div(w.k, 64) * 64;
  std::vector<uint8_t> rows(kPairedRows * stride);
  int64_t last = -1;
  for (int64_t block = 0; block < w.n; block += kPairedRows) {
    out.start.push_back(int64_t(out.bytes.size()));
    std::memset(rows.data(), 0, rows.size());
    for (int64_t row = block; row < std::min(block + kPairedRows, w.n); ++row)
      spread_row(w, row, rows.data() + (row - block) * stride, [&](int64_t column) {
        int64_t step = row * w.k + column - last;
        last += step;
        for (; step >= 255; step -= 255) out.kept_zeros.push_back(255);
        out.kept_zeros.push_back(uint8_t(step));
      });
    for (int64_t c = 0; c < w.k; c += 64) {
      __m512i first[16], second[16];
      load_tile(rows.data() + c, stride, first), load_tile(rows.data() + 16 * stride + c, stride, second);
      append(first, second, out.bytes);
      if (c + kPairedColumns < w.k) append(first + 8, second + 8, out.bytes);
    }
  }
  out.start.push_back(int64_t(out.bytes.size()));
  out.bytes.resize(out.bytes.size() + 64);  // whole vectors are loaded
  return true;
}

}  // namespace ck::CK_ISA
