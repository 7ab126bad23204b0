// Softmax attention of all queries of a prompt, bf16: scores, sums and outputs in fp32, what multiplies the values rounded to bf16.
#include <limits>

#include "floats.h"
#include "gemm.h"

namespace ck::CK_ISA {
namespace {

using step::Floats;

// Keys [length, width] as tiles of 32 keys, pairs along the width: [tile][pairs][32].
void pack_keys(const uint16_t* keys, int64_t stride, int64_t length, int64_t width, uint32_t* out) {
  const int64_t pairs = width / 2;
  for (int64_t t = 0; t < ceil_div(length, kTileN) * kTileN; t += 16) {
    uint32_t* to = out + t / kTileN * pairs * kTileN + t % kTileN;
    for (int64_t p = 0; p < pairs; p += 16) {
      const __mmask16 keep = low_words(std::min<int64_t>(pairs - p, 16));
      __m512i a[16];
      for (int64_t i = 0; i < 16; ++i)
        a[i] = t + i < length ? _mm512_maskz_loadu_epi32(keep, reinterpret_cast<const uint32_t*>(keys + (t + i) * stride) + p)
                              : _mm512_setzero_si512();
      transpose_16x16(a);
      for (int64_t i = 0; i < std::min<int64_t>(16, pairs - p); ++i) _mm512_storeu_si512(to + (p + i) * kTileN, a[i]);
    }
  }
}

// Values [length, width] as tiles of 32 columns, pairs along the keys: [tile][pairs of keys][32].
void pack_values(const uint16_t* values, int64_t stride, int64_t length, int64_t width, uint32_t* out) {
  const int64_t pairs = ceil_div(length, kTileN) * kTileN / 2;
  for (int64_t c = 0; c < ceil_div(width, kTileN) * kTileN; c += 16) {
    uint32_t* to = out + c / kTileN * pairs * kTileN + c % kTileN;
    const __mmask16 keep = low_words(std::clamp<int64_t>(width - c, 0, 16));
    const auto row = [&](int64_t t) {
      return t < length ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(keep, values + t * stride + c)) : _mm512_setzero_si512();
    };
    for (int64_t p = 0; p < pairs; ++p)
      _mm512_storeu_si512(to + p * kTileN, _mm512_or_si512(row(2 * p), _mm512_slli_epi32(row(2 * p + 1), 16)));
  }
}

// Up to twelve rows of bf16 as a panel [pairs][rows].
void pack_panel(const uint16_t* x, int64_t stride, int64_t rows, int64_t pairs, uint32_t* out) {
  const __mmask16 kept = low_words(rows);
  for (int64_t p = 0; p < pairs; p += 16) {
    const __mmask16 keep = low_words(std::min<int64_t>(pairs - p, 16));
    __m512i a[16];
    for (int64_t i = 0; i < 16; ++i)
      a[i] = i < rows ? _mm512_maskz_loadu_epi32(keep, reinterpret_cast<const uint32_t*>(x + i * stride) + p) : _mm512_setzero_si512();
    transpose_16x16(a);
    for (int64_t i = 0; i < std::min<int64_t>(16, pairs - p); ++i) _mm512_mask_storeu_epi32(out + (p + i) * rows, kept, a[i]);
  }
}

// Scores [tile][rows][32] of one row to weights in bf16, zero beyond `seen`; their sum before they were rounded.
float soften(const float* scores, int64_t rows, int64_t seen, int64_t padded, float scale, uint16_t* out) {
  const auto at = [&](int64_t t) { return scores + t / kTileN * rows * kTileN + t % kTileN; };
  const auto keep = [&](int64_t t) { return low_words(std::clamp<int64_t>(seen - t, 0, 16)); };
  const __m512 least = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 most = least;
  for (int64_t t = 0; t < seen; t += 16) most = _mm512_max_ps(most, _mm512_mask_loadu_ps(least, keep(t), at(t)));
  const float highest = _mm512_reduce_max_ps(most) * scale;
  Floats total = {};
  for (int64_t t = 0; t < padded; t += 16) {
    Floats v = {};
    if (t < seen) {
      const Floats e = step::exp(step::load(at(t)) * scale - highest);
      __m512 kept;
      std::memcpy(&kept, &e, sizeof kept);
      kept = _mm512_maskz_mov_ps(keep(t), kept);
      std::memcpy(&v, &kept, sizeof kept);
      total += v;
    }
    __m512 w;
    std::memcpy(&w, &v, sizeof w);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + t), to_bf16(w));
  }
  return step::sum(total);
}

}  // namespace

bool attend_prompt(const PromptAttention& a, const Parallel& parallel) {
  if (a.width % 2) return false;
  const int64_t tiles = ceil_div(a.length, kTileN), padded = tiles * kTileN, wide = ceil_div(a.value_width, kTileN);
  const int64_t panels = ceil_div(a.length, kTileM), shared = a.heads / a.kv_heads;
  const int64_t key_words = padded * a.width / 2, value_words = padded / 2 * wide * kTileN;
  Buffer<uint32_t> keys(a.kv_heads * key_words), values(a.kv_heads * value_words);
  for (int64_t b = 0; b < a.batch; ++b) {
    parallel(a.kv_heads, [&](int64_t h0, int64_t h1) {
      for (int64_t h = h0; h < h1; ++h) {
        pack_keys(a.keys.at(b, h), a.keys.row, a.length, a.width, keys.data + h * key_words);
        pack_values(a.values.at(b, h), a.values.row, a.length, a.value_width, values.data + h * value_words);
      }
    });
    parallel(a.heads * panels, [&](int64_t u0, int64_t u1) {
      Buffer<float> scores(padded * kTileM);
      Buffer<uint16_t> weights(padded * kTileM);
      Buffer<uint32_t> panel(std::max(padded, a.width) / 2 * kTileM);
      alignas(64) float out[kTileM * kTileN];
      float sums[kTileM];
      for (int64_t u = u0; u < u1; ++u) {
        // Causal: a late panel after an early one, so that shares of the work are alike.
        const int64_t h = u / panels, i = u % panels, q0 = (i % 2 ? panels - 1 - i / 2 : i / 2) * kTileM;
        const int64_t rows = std::min<int64_t>(kTileM, a.length - q0), seen = a.causal ? q0 + rows : a.length;
        const int64_t used = ceil_div(seen, kTileN);
        const Micro kernel = micro_for(rows);
        pack_panel(a.query.at(b, h) + q0 * a.query.row, a.query.row, rows, a.width / 2, panel.data);
        const uint32_t* k = keys.data + h / shared * key_words;
        for (int64_t t = 0; t < used; ++t)
          kernel(panel.data, k + t * a.width / 2 * kTileN, a.width / 2, scores.data + t * rows * kTileN, false, nullptr, nullptr, nullptr);
        for (int64_t r = 0; r < rows; ++r)
          sums[r] = soften(scores.data + r * kTileN, rows, a.causal ? q0 + r + 1 : a.length, used * kTileN, a.scale, weights.data + r * padded);
        pack_panel(weights.data, padded, rows, used * kTileN / 2, panel.data);
        for (int64_t v = 0; v < wide; ++v) {
          kernel(panel.data, values.data + h / shared * value_words + v * padded / 2 * kTileN, used * kTileN / 2, out, false, nullptr, nullptr, nullptr);
          const int64_t count = std::min<int64_t>(kTileN, a.value_width - v * kTileN);
          const __mmask16 keep0 = low_words(std::min<int64_t>(count, 16)), keep1 = low_words(std::max<int64_t>(count - 16, 0));
          for (int64_t r = 0; r < rows; ++r) {
            uint16_t* to = a.out + ((b * a.length + q0 + r) * a.heads + h) * a.value_width + v * kTileN;
            const __m512 one = _mm512_set1_ps(1.f / sums[r]);
            _mm256_mask_storeu_epi16(to, keep0, to_bf16(_mm512_mul_ps(_mm512_load_ps(out + r * kTileN), one)));
            _mm256_mask_storeu_epi16(to + 16, keep1, to_bf16(_mm512_mul_ps(_mm512_load_ps(out + r * kTileN + 16), one)));
          }
        }
      }
    });
  }
  return true;
}

}  // namespace ck::CK_ISA
