// sum += aᵀ b of bf16 a and b [tokens, columns]; where both are one, a Gram matrix, below the diagonal alone. Products are exact in fp32,
// sums are fp32, and each number is summed in the same order whatever the number of threads.
#include "gemm.h"

namespace ck::CK_ISA {
namespace {

// Tokens of a chunk. Of 512 a tile of 32 columns is 32 KB and a panel of twelve 12 KB, which L1 holds; a wide matrix is read and
// written once for each chunk, which costs more.
inline int64_t chunk_of(int64_t columns) { return columns > 2048 ? 1024 : 512; }

// Two tokens as words of a pair for each column, then put where `to(column, count)` says: 16 columns at a time.
template <typename To>
void pair_tokens(const uint16_t* x, int64_t tokens, int64_t columns, int64_t pair, To to) {
  const uint16_t *first = x + 2 * pair * columns, *second = 2 * pair + 1 < tokens ? first + columns : nullptr;
  for (int64_t c = 0; c < columns; c += 16) {
    const __mmask16 keep = low_words(std::min<int64_t>(columns - c, 16));
    const __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(keep, first + c));
    const __m512i b = second ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(keep, second + c)) : _mm512_setzero_si512();
    to(c, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
  }
}

}  // namespace

bool add_products(const uint16_t* a, const uint16_t* b, int64_t tokens, int64_t columns, float* sum, const Parallel& parallel) {
  const bool below = a == b;
  const int64_t tiles = ceil_div(columns, kTileN), panels = ceil_div(columns, kTileM), chunk = chunk_of(columns), most = std::min(ceil_div(tokens, 2), chunk / 2);
  Buffer<uint32_t> tile(tiles * kTileN * most), panel(panels * kTileM * most);
  for (int64_t t0 = 0; t0 < tokens; t0 += chunk) {
    const int64_t here = std::min(chunk, tokens - t0), pairs = ceil_div(here, 2);
    parallel(pairs, [&](int64_t p0, int64_t p1) {
      Buffer<uint32_t> row(ceil_div(columns, 96) * 96);
      std::memset(row.data + columns, 0, (ceil_div(columns, 96) * 96 - columns) * 4);
      for (int64_t p = p0; p < p1; ++p) {
        const auto keep = [&](int64_t c, __m512i words) { _mm512_store_si512(row.data + c, words); };
        pair_tokens(b + t0 * columns, here, columns, p, keep);
        for (int64_t i = 0; i < tiles; ++i)
          std::memcpy(tile.data + (i * pairs + p) * kTileN, row.data + i * kTileN, 4 * kTileN);
        if (!below) pair_tokens(a + t0 * columns, here, columns, p, keep);
        for (int64_t i = 0; i < panels; ++i)
          std::memcpy(panel.data + (i * pairs + p) * kTileM, row.data + i * kTileM, 4 * kTileM);
      }
    });
    // The first tile has the most panels below it, the last the fewest: two of them together are as much work as any other two.
    parallel(ceil_div(tiles, 2), [&](int64_t u0, int64_t u1) {
      alignas(64) float sums[kTileM * kTileN];
      const auto one = [&](int64_t t) {
        const int64_t c0 = t * kTileN, width = std::min<int64_t>(kTileN, columns - c0);
        const __mmask16 keep0 = low_words(std::min<int64_t>(width, 16)), keep1 = low_words(std::max<int64_t>(width - 16, 0));
        for (int64_t i = below ? c0 / kTileM : 0; i < panels; ++i) {
          micro<kTileM>(panel.data + i * pairs * kTileM, tile.data + t * pairs * kTileN, pairs, sums, false, nullptr, nullptr, nullptr);
          for (int64_t r = i * kTileM; r < std::min((i + 1) * kTileM, columns); ++r) {
            float* to = sum + r * columns + c0;
            const float* c = sums + (r - i * kTileM) * kTileN;
            _mm512_mask_storeu_ps(to, keep0, _mm512_add_ps(_mm512_maskz_loadu_ps(keep0, to), _mm512_load_ps(c)));
            if (keep1) _mm512_mask_storeu_ps(to + 16, keep1, _mm512_add_ps(_mm512_maskz_loadu_ps(keep1, to + 16), _mm512_load_ps(c + 16)));
          }
        }
      };
      for (int64_t u = u0; u < u1; ++u) {
        one(u);
        if (tiles - 1 - u != u) one(tiles - 1 - u);
      }
    });
  }
  return true;
}

}  // namespace ck::CK_ISA
