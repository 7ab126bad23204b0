// y = x Wᵀ for a few rows of bf16 x and W of codes under a bit mask, in integers (fixed_point.h).
//
// The codes of a few rows become bytes in the first cache, some rows before they are used. Then the kept ones of 64 columns are put
// where they belong by vpexpandb, zero points stand where nothing was kept, and vpdpbusd multiplies as with packed weights.
#include "fixed_point.h"

namespace ck::CK_ISA {
namespace {

constexpr int kRows = 4;  // of W at once
using Columns = Digits<8>;  // 64 neighbouring columns are a vector

// Codes of a stream to bytes, 64 at once: eight of them are at most B + 1 bytes, which go to one 64-bit word.
class Stream {
 public:
  explicit Stream(const SparseWeight& weight) : w(weight) {
    for (int i = 0; i < 64; ++i) from_[i] = uint8_t(i / 8 * w.bits + std::min(i % 8, std::min(w.bits, 7)));
    for (int first = 0; first < 8; ++first)
      for (int i = 0; i < 64; ++i) shift_[first][i] = uint8_t(first + i % 8 * w.bits);
  }

  // The codes of a row, whole vectors of them.
  void unpack(int64_t row, uint8_t* out) const {
    const int64_t position = w.start[row], bytes = 8 * w.bits;
    const __m512i from = _mm512_load_si512(from_), shift = _mm512_load_si512(shift_[position & 7]);
    const __m512i mask = _mm512_set1_epi8(char((1 << w.bits) - 1));
    const uint8_t* p = w.values + (position >> 3);
    const uint8_t* const end = w.values + w.value_bytes;
    for (int64_t left = (w.start[row + 1] - position) / w.bits; left > 0; left -= 64, p += bytes, out += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(p + kAhead), _MM_HINT_T0);
      const __m512i raw = end - p >= 64 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, uint32_t(end - p)), p);
      _mm512_storeu_si512(out, _mm512_and_si512(_mm512_multishift_epi64_epi8(shift, _mm512_permutexvar_epi8(from, raw)), mask));
    }
  }

 private:
  const SparseWeight& w;
  alignas(64) uint8_t from_[64];
  alignas(64) uint8_t shift_[8][64];
};

// The bits of columns 64 · v … of a row of the mask.
inline uint64_t mask_of(const SparseWeight& w, const uint8_t* row, int64_t v) {
  uint64_t bits = 0;
  std::memcpy(&bits, row + 8 * v, size_t(std::min<int64_t>(8, w.mask_bytes - 8 * v)));
  return bits;
}

// total[r][m] = row (row + r) of W, its codes as bytes, · row m of x, not yet summed over the lanes. WIDE: a vector lies in one span.
template <int M, bool ZERO, bool WIDE>
void dot_rows(const Groups<SparseWeight>& groups, const Columns& x, const uint8_t* bytes, int64_t stride, int64_t row,
              __m512 (&total)[kRows][M]) {
  constexpr int R = kRows;
  const SparseWeight& w = groups.w;
  const int64_t whole = w.mask_bytes / 8;
  const __m512i middle = _mm512_set1_epi8(char(1 << (w.bits - 1)));
  const uint8_t *mask[R], *code[R];
  for (int r = 0; r < R; ++r) {
    mask[r] = w.mask + std::min(row + r, w.n - 1) * w.mask_bytes;
    code[r] = bytes + r * stride;
    for (int m = 0; m < M; ++m) total[r][m] = _mm512_setzero_ps();
    for (int64_t b = 0; b < w.mask_bytes; b += 64) _mm_prefetch(reinterpret_cast<const char*>(mask[r] + kAhead + b), _MM_HINT_T0);
  }
  __m512 factor[R][M];
  __m512i nothing[R];
  alignas(64) float factors[R][M][16];
  // Neighbouring vectors of one span, as many as there are words of the mask.
  auto step = [&](int64_t v, int64_t at, auto count, auto word) __attribute__((always_inline)) {
    constexpr int V = decltype(count)::value;
    const __m512i lane = _mm512_load_si512(x.lane + at * 16);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m512i pruned = ZERO ? _mm512_permutexvar_epi32(lane, nothing[r]) : middle;
      __m512i c[V];
#pragma GCC unroll 2
      for (int i = 0; i < V; ++i) {
        const uint64_t bits = word(mask[r] + 8 * i);
        __m512i kept = _mm512_loadu_si512(code[r]);
        asm("" : "+v"(kept));  // vpexpandb straight from memory is slow
        code[r] += _mm_popcnt_u64(bits);
        c[i] = _mm512_mask_expand_epi8(pruned, bits, kept);
      }
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const int64_t place = (m * x.vectors + v) * 64;
        __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 2
        for (int i = 0; i < V; ++i) sum = _mm512_dpbusd_epi32(sum, c[i], _mm512_load_si512(x.high + place + 64 * i));
        sum = _mm512_slli_epi32(sum, 8);
#pragma GCC unroll 2
        for (int i = 0; i < V; ++i) sum = _mm512_dpbusd_epi32(sum, c[i], _mm512_load_si512(x.low + place + 64 * i));
        const __m512 by = WIDE ? _mm512_set1_ps(factors[r][m][x.lane[at * 16]]) : _mm512_permutexvar_ps(lane, factor[r][m]);
        total[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), by, total[r][m]);
      }
    }
  };
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, 2>;
  const bool pairs = x.span == 128;
  for (int64_t v0 = 0, turn = 0; v0 < x.vectors; v0 += x.turn, ++turn) {
    for (int r = 0; r < R; ++r) {
      const int64_t at = std::min(row + r, w.n - 1);
      const __m512 scale = groups.load(w.scale, w.scale_dtype, at, turn);
      const __m512 zero = ZERO ? groups.load(w.zero, U8, at, turn) : _mm512_set1_ps(float(1 << (w.bits - 1)));
      if (ZERO) nothing[r] = _mm512_mullo_epi32(_mm512_cvtps_epi32(zero), _mm512_set1_epi32(0x01010101));
      for (int m = 0; m < M; ++m) {
        const int64_t of = m * x.spans + turn * 16;
        factor[r][m] = _mm512_mul_ps(scale, _mm512_load_ps(x.step + of));
        total[r][m] = _mm512_fnmadd_ps(_mm512_mul_ps(zero, _mm512_load_ps(x.sum + of)), factor[r][m], total[r][m]);
        if (WIDE) _mm512_store_ps(factors[r][m], factor[r][m]);
      }
    }
    const int64_t v1 = std::min(v0 + x.turn, x.vectors);
    int64_t v = v0;
    const auto word = [&v](const uint8_t* p) __attribute__((always_inline)) {
      uint64_t bits;
      std::memcpy(&bits, p + 8 * v, 8);
      return bits;
    };
    if (pairs)
      for (; v + 1 < std::min(v1, whole); v += 2) step(v, v - v0, Two{}, word);
    for (; v < std::min(v1, whole); ++v) step(v, v - v0, One{}, word);
    for (; v < v1; ++v) step(v, v - v0, One{}, [&](const uint8_t* p) { return mask_of(w, p, v); });
  }
}

template <int M, bool ZERO, bool WIDE>
void rows_of(const Input& x, const SparseWeight& w, const Output& y, int64_t span, const Parallel& parallel) {
  const Columns digits(x, span);
  const Groups<SparseWeight> groups(w, span, digits.spans / 16);
  const Stream stream(w);
  const int64_t stride = ceil_div(w.k, 64) * 64 + 128;  // whole vectors are stored and loaded
  parallel(ceil_div(w.n, 16), [&](int64_t b0, int64_t b1) {
    const int64_t end = std::min(b1 * 16, w.n);
    Buffer<uint8_t> room(2 * kRows * stride);
    const auto bytes = [&](int64_t row) { return room.data + (row / kRows % 2) * kRows * stride; };
    const auto unpack = [&](int64_t row) {
      for (int64_t r = 0; r < kRows; ++r) stream.unpack(std::min(row + r, w.n - 1), bytes(row) + r * stride);
    };
    unpack(b0 * 16);
    for (int64_t row = b0 * 16; row < end; row += 16) {
      __m512 total[M][16], four[kRows][M];
      for (int part = 0; part < 16; part += kRows) {
        const int64_t here = row + part;
        if (here + kRows < end) unpack(here + kRows);  // before they are needed: loads that meet stores on their way wait
        if (here < end) dot_rows<M, ZERO, WIDE>(groups, digits, bytes(here), stride, here, four);
        for (int r = 0; r < kRows; ++r)
          for (int m = 0; m < M; ++m) total[m][part + r] = four[r][m];
      }
      for (int m = 0; m < M; ++m) store_rows(y, m, row, std::min<int64_t>(16, w.n - row), sum_each(total[m]));
    }
  });
}

template <int M>
bool rows(const Input& x, const SparseWeight& w, const Output& y, const Parallel& parallel) {
  const int64_t span = span_of(w.groups > 1 ? w.group : 0, Columns::C::lane);
  if (!span) return false;
  const bool wide = span % 64 == 0;
  if (w.zero) wide ? rows_of<M, true, true>(x, w, y, span, parallel) : rows_of<M, true, false>(x, w, y, span, parallel);
  else wide ? rows_of<M, false, true>(x, w, y, span, parallel) : rows_of<M, false, false>(x, w, y, span, parallel);
  return true;
}

}  // namespace

bool sparse_integers(const Input& x, const SparseWeight& w, const Output& y, const Parallel& parallel) {
  if (x.dtype != BF16 || w.bits > 8) return false;
  switch (x.rows) {
    case 1: return rows<1>(x, w, y, parallel);
    case 2: return rows<2>(x, w, y, parallel);
    case 3: return rows<3>(x, w, y, parallel);
    case 4: return rows<4>(x, w, y, parallel);
    default: return false;
  }
}

}  // namespace ck::CK_ISA
