// y = x Wᵀ for W of 2- to 8-bit codes, read as they lie on disk (compressed-tensors pack-quantized).
//
// Decode: 16-bit words that each hold the codes of 4 (bits ≤ 4) or 2 (bits ≥ 5) neighbouring columns are shifted and
// looked up in a table of 32 bf16 numbers held in a register (vpermw reads 5 index bits, so the table repeats and needs
// no masking), multiplied with x that was put in the same order (vdpbf16ps) and scaled group by group in fp32.
// Above 5 bits a code is looked up in two parts, low five bits and the rest, each exact in bf16.
#include "gemm.h"

namespace ck::CK_ISA {
namespace {

constexpr int kRows = 4;           // of W at once
constexpr int64_t kAhead = 2048;   // bytes of a row that are asked for before they are used

template <int B>
struct Format {
  static constexpr int width = B <= 4 ? 4 : 2;          // columns in a 16-bit word
  static constexpr int64_t block = 32 * width;          // columns in a vector
  static constexpr int64_t bytes = block * B / 8;       // … and its bytes
  static constexpr int vectors = B <= 5 ? width : 4;    // vectors of x·w products
  static constexpr int x_of(int v) { return B <= 5 ? v : v / 2; }
};

inline __mmask64 low_bytes(int64_t count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

// Byte and bit where each 16-bit window of a vector starts.
struct Windows {
  __m512i bytes0, shift0, bytes1, shift1;
};

template <int B>
Windows make_windows() {
  alignas(64) uint8_t bytes[2][64];
  alignas(64) uint16_t shift[2][32];
  for (int e = 0; e < 2; ++e)
    for (int w = 0; w < 32; ++w) {
      // Window e of word w: code `width·w` (e = 0) or, for 7 bits, which do not fit twice, the one after it.
      const int bit = (Format<B>::width * w + (B == 7 ? e : 0)) * B;
      bytes[e][2 * w] = uint8_t(bit / 8);
      bytes[e][2 * w + 1] = uint8_t(std::min<int>(bit / 8 + 1, Format<B>::bytes - 1));
      shift[e][w] = uint16_t(bit % 8);
    }
  return {_mm512_load_si512(bytes[0]), _mm512_load_si512(shift[0]), _mm512_load_si512(bytes[1]),
          _mm512_load_si512(shift[1])};
}

// The codes of one vector in two views of 16-bit words: code 0 of each word at bit 0 of `a`, code 1 (bits ≥ 5) at bit 0
// of `b`. Whole loads (WHOLE) may read up to 64 bytes from p; masked ones read only the bytes of the mask but are slow where
// they cross a cache line.
template <bool WHOLE>
inline __m512i load_bytes(const uint8_t* p, __mmask64 mask) {
  return WHOLE ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(mask, p);
}

template <int B, bool WHOLE>
inline void load_words(const uint8_t* p, __mmask64 mask, const Windows& win, __m512i& a, __m512i& b) {
  if constexpr (B == 2) {
    a = _mm512_cvtepu8_epi16(WHOLE ? _mm256_loadu_si256((const __m256i*)p) : _mm256_maskz_loadu_epi8(__mmask32(mask), p));
  } else if constexpr (B == 3) {
    a = _mm512_srlv_epi16(_mm512_permutexvar_epi8(win.bytes0, load_bytes<WHOLE>(p, mask)), win.shift0);
  } else if constexpr (B == 4) {
    a = load_bytes<WHOLE>(p, mask);
  } else if constexpr (B == 8) {
    a = load_bytes<WHOLE>(p, mask);
    b = _mm512_srli_epi16(a, 8);
  } else {
    const __m512i raw = load_bytes<WHOLE>(p, mask);
    a = _mm512_srlv_epi16(_mm512_permutexvar_epi8(win.bytes0, raw), win.shift0);
    if constexpr (B == 7)
      b = _mm512_srlv_epi16(_mm512_permutexvar_epi8(win.bytes1, raw), win.shift1);
    else
      b = _mm512_srli_epi16(a, B);
  }
}

// How many whole vectors of a row can be loaded whole without leaving the weight.
template <int B>
int64_t whole_vectors(const PackedWeight& w, int64_t row) {
  const int64_t reach = B == 2 ? 32 : 64, left = (w.n - row) * w.row_bytes - reach;
  return left < 0 ? 0 : std::min(w.row_bytes / Format<B>::bytes, left / Format<B>::bytes + 1);
}

struct Tables {
  __m512i low, high;
};

// bf16 of (code − middle) by the low five bits, and of the rest for wider codes.
template <int B>
Tables make_tables(const float* table = nullptr) {
  alignas(64) uint16_t low[32], high[32];
  constexpr int middle = 1 << (B - 1);
  for (int i = 0; i < 32; ++i) {
    low[i] = float_to_bf16(table ? table[i & 15] : B <= 5 ? float((i & ((1 << B) - 1)) - middle) : float(i));
    high[i] = float_to_bf16(B <= 5 ? 0.f : float(32 * (i & ((1 << (B > 5 ? B - 5 : 0)) - 1)) - middle));
  }
  return {_mm512_load_si512(low), _mm512_load_si512(high)};
}

template <int B>
inline void lookup(const Tables& t, __m512i a, __m512i b, __m512i (&w)[4]) {
  if constexpr (B <= 4) {
    w[0] = _mm512_permutexvar_epi16(a, t.low);
    w[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(a, B), t.low);
    w[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(a, 2 * B), t.low);
    w[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(a, 3 * B), t.low);
  } else if constexpr (B == 5) {
    w[0] = _mm512_permutexvar_epi16(a, t.low);
    w[1] = _mm512_permutexvar_epi16(b, t.low);
  } else {
    w[0] = _mm512_permutexvar_epi16(a, t.low);
    w[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(a, 5), t.high);
    w[2] = _mm512_permutexvar_epi16(b, t.low);
    w[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(b, 5), t.high);
  }
}
// vpermw takes (index, table) in _mm512_permutexvar_epi16(index, table).

struct Prepared {        // what all threads share
  const uint16_t* x;     // [columns][kp] in the format's order; a column is one term of one row of x
  const float* sums;     // [columns][kp / block][16]: sums of x over the codes of each 32-bit lane (asymmetric only)
  int64_t kp, vectors;   // kp / block
  const int32_t* group;  // [vectors]: group of the vector's first column
  const uint8_t* lane;   // [vectors][16]: group of each lane, counted from there
  Windows windows;
  Tables tables;
};

// res[r][m] = packed row (row + r) · column m of x.
template <int B, int R, int M, bool LANES, bool ZERO>
void dot_rows(const PackedWeight& w, const Prepared& p, int64_t row, int64_t m0, float* buffer, float* res) {
  using F = Format<B>;
  const Windows win = p.windows;
  const Tables tables = p.tables;
  const float middle = float(1 << (B - 1));
  const uint8_t* codes[R];
  const float *scale[R], *zero[R];
  const int64_t padded = w.groups + 16;
  for (int r = 0; r < R; ++r) {
    const int64_t at = std::min(row + r, w.n - 1);
    codes[r] = w.codes + at * w.row_bytes;
    float* s = buffer + 2 * r * padded;
    load_group_row(w.scale, w.scale_dtype, w.per_tensor ? 0 : at, w.groups, s);
    scale[r] = s;
    if (ZERO) {
      load_group_row(w.zero, U8, w.per_tensor ? 0 : at, w.groups, s + padded);
      for (int64_t g = 0; g < w.groups; ++g) s[padded + g] = middle - s[padded + g];
      zero[r] = s + padded;
    }
  }
  __m512 acc[R][M];
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) acc[r][m] = _mm512_setzero_ps();
  const uint16_t* x = p.x + m0 * p.kp;
  const float* sums = ZERO ? p.sums + m0 * p.vectors * 16 : nullptr;

  // Rows lie one after the other: what follows the end of these R is the beginning of the next R.
  int64_t ahead = kAhead;
  auto step = [&](auto all, int64_t v, __mmask64 mask) __attribute__((always_inline)) {
    __m512i lane = _mm512_setzero_si512();
    if (LANES) lane = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(p.lane + v * 16)));
    const int64_t g = p.group[v];
    __m512i q[R][4];
    __m512 s[R], z[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      __m512i a, b;
      _mm_prefetch(reinterpret_cast<const char*>(codes[r] + v * F::bytes + ahead), _MM_HINT_T0);
      load_words<B, decltype(all)::value>(codes[r] + v * F::bytes, mask, win, a, b);
      lookup<B>(tables, a, b, q[r]);
      s[r] = LANES ? _mm512_permutexvar_ps(lane, _mm512_loadu_ps(scale[r] + g)) : _mm512_set1_ps(scale[r][g]);
      if (ZERO) z[r] = LANES ? _mm512_permutexvar_ps(lane, _mm512_loadu_ps(zero[r] + g)) : _mm512_set1_ps(zero[r][g]);
    }
    // One load of x serves all rows.
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const uint16_t* xv = x + m * p.kp + v * F::block;
      __m512 d[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
        d[r] = ZERO ? _mm512_mul_ps(z[r], _mm512_loadu_ps(sums + (m * p.vectors + v) * 16)) : _mm512_setzero_ps();
#pragma GCC unroll 4
      for (int k = 0; k < F::vectors; ++k) {
        const __m512i xk = _mm512_loadu_si512(xv + 32 * F::x_of(k));
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) d[r] = dot(d[r], q[r][k], xk);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r][m] = _mm512_fmadd_ps(d[r], s[r], acc[r][m]);
    }
  };
  const int64_t safe = whole_vectors<B>(w, std::min(row + R, w.n) - 1);
  int64_t v = 0;
  for (const int64_t near = std::clamp<int64_t>((w.row_bytes - kAhead) / F::bytes, 0, safe); v < near; ++v)
    step(std::true_type{}, v, 0);
  ahead = kAhead + (R - 1) * w.row_bytes;
  for (; v < safe; ++v) step(std::true_type{}, v, 0);
  for (; v * F::bytes < w.row_bytes; ++v)
    step(std::false_type{}, v, low_bytes(std::min(F::bytes, w.row_bytes - v * F::bytes)));
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) res[r * M + m] = _mm512_reduce_add_ps(acc[r][m]);
}

using DotRows = void (*)(const PackedWeight&, const Prepared&, int64_t, int64_t, float*, float*);
constexpr int kColumns[] = {1, 2, 3, 4, 6, 8};

template <int B, bool LANES, bool ZERO>
DotRows dot_rows_for(int columns) {
  switch (columns) {
    case 1: return dot_rows<B, kRows, 1, LANES, ZERO>;
    case 2: return dot_rows<B, kRows, 2, LANES, ZERO>;
    case 3: return dot_rows<B, kRows, 3, LANES, ZERO>;
    case 4: return dot_rows<B, kRows, 4, LANES, ZERO>;
    case 6: return dot_rows<B, kRows, 6, LANES, ZERO>;
    default: return dot_rows<B, kRows, 8, LANES, ZERO>;
  }
}

template <int B>
DotRows dot_rows_for(int columns, bool lanes, bool zero) {
  if constexpr (B >= 5 && B <= 7) lanes = true;  // rare widths: one kernel is enough
  if (lanes) return zero ? dot_rows_for<B, true, true>(columns) : dot_rows_for<B, true, false>(columns);
  if constexpr (B >= 5 && B <= 7) return nullptr;
  else return zero ? dot_rows_for<B, false, true>(columns) : dot_rows_for<B, false, false>(columns);
}

template <int B>
void decode(const Input& x, const PackedWeight& w, const Output& y, const Parallel& parallel) {
  using F = Format<B>;
  const int64_t kp = ceil_div(x.k, 128) * 128, vectors = kp / F::block;
  const int terms = terms_of(x.dtype);
  const int64_t columns = x.rows * terms, padded_columns = columns + 8;
  Buffer<uint16_t> xp(padded_columns * kp);
  std::memset(xp.data + columns * kp, 0, 8 * kp * sizeof(uint16_t));
  for (int64_t m = 0; m < x.rows; ++m) prepare_row(x, m, {F::width}, kp, xp.data + m * terms * kp);
  if (w.table)  // codes change places in pairs, and so do the vectors that they are multiplied with
    for (int64_t k = 0; k < columns * kp; k += 64) std::swap_ranges(xp.data + k, xp.data + k + 32, xp.data + k + 32);

  Buffer<float> sums(w.zero ? padded_columns * vectors * 16 : 1);
  if (w.zero) {
    const __m512i ones = _mm512_set1_epi16(0x3f80);
    for (int64_t c = 0; c < padded_columns; ++c)
      for (int64_t v = 0; v < vectors; ++v) {
        __m512 total = _mm512_setzero_ps();
        for (int k = 0; k < F::width; ++k)
          total = dot(total, ones, _mm512_loadu_si512(xp.data + c * kp + v * F::block + 32 * k));
        _mm512_storeu_ps(sums.data + (c * vectors + v) * 16, total);
      }
  }
  const int64_t group = w.groups == 1 ? kp : w.group;
  const bool lanes = group % F::block != 0;
  std::vector<int32_t> first(vectors);
  std::vector<uint8_t> lane(vectors * 16);
  for (int64_t v = 0; v < vectors; ++v) {
    first[v] = int32_t(std::min(v * F::block / group, w.groups - 1));
    for (int64_t l = 0; l < 16; ++l) {
      const int64_t g = std::min((v * F::block + l * 2 * F::width) / group, w.groups - 1);
      lane[v * 16 + l] = uint8_t(g - first[v]);
    }
  }
  const Prepared p{xp.data, sums.data, kp, vectors, first.data(), lane.data(), make_windows<B>(), make_tables<B>(w.table)};

  const int64_t per_pass = 8 / terms * terms;  // whole rows of x
  for (int64_t c0 = 0; c0 < columns; c0 += per_pass) {
    const int64_t here = std::min(per_pass, columns - c0);
    int size = 8;
    for (int c : kColumns)
      if (c >= here) { size = c; break; }
    const DotRows kernel = dot_rows_for<B>(size, lanes, w.zero != nullptr);
    const int64_t rows = kRows;
    parallel(ceil_div(w.n, rows), [&](int64_t b0, int64_t b1) {
      Buffer<float> buffer(2 * rows * (w.groups + 16));
      float res[32];
      for (int64_t b = b0; b < b1; ++b) {
        kernel(w, p, b * rows, c0, buffer.data, res);
        for (int64_t r = 0; r < rows && b * rows + r < w.n; ++r)
          for (int64_t m = 0; m < here / terms; ++m) {
            float total = 0.f;
            for (int t = terms - 1; t >= 0; --t) total += res[r * size + m * terms + t];
            store_scalar(y, c0 / terms + m, b * rows + r, total);
          }
      }
    });
  }
}

// Rows of bf16(scale · (code − zero)) in the format's order, for the tiled product. Groups are multiples of 32.
template <int B>
struct Decoder {
  const PackedWeight& w;
  Windows win = make_windows<B>();
  int64_t row = 0, padded;
  Buffer<float> groups;
  explicit Decoder(const PackedWeight& weight)
      : w(weight), padded(weight.groups + 16), groups(2 * kTileN * padded) {}

  void begin(int64_t first, int64_t count) {
    row = first;
    for (int64_t i = 0; i < count; ++i) {
      float* s = groups.data + 2 * i * padded;
      load_group_row(w.scale, w.scale_dtype, w.per_tensor ? 0 : row + i, w.groups, s);
      if (w.zero)
        load_group_row(w.zero, U8, w.per_tensor ? 0 : row + i, w.groups, s + padded);
      else
        std::fill(s + padded, s + 2 * padded, float(1 << (B - 1)));
    }
  }

  int64_t group_of(int64_t k) const { return w.groups == 1 ? 0 : std::min(k / w.group, w.groups - 1); }

  __m512i table(const float* s, int64_t g) const {
    const __m512 code = _mm512_cvtepi32_ps(_mm512_and_si512(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32((1 << B) - 1)));
    const __m512 centred = w.table ? _mm512_loadu_ps(w.table) : _mm512_sub_ps(code, _mm512_set1_ps(s[padded + g]));
    const __m512 value = _mm512_mul_ps(centred, _mm512_set1_ps(s[g]));
    return _mm512_broadcast_i64x4(to_bf16(value));
  }

  void decode(int64_t i, int64_t k0, int64_t k1, uint16_t* out) const {
    using F = Format<B>;
    const uint8_t* codes = w.codes + (row + i) * w.row_bytes;
    const float* s = groups.data + 2 * i * padded;
    for (int64_t k = k0; k < k1; k += F::block, out += F::block) {
      const int64_t at = k / F::block * F::bytes;
      __m512i a, b;
      const __mmask64 mask = low_bytes(std::min(F::bytes, std::max<int64_t>(w.row_bytes - at, 0)));
      load_words<B, false>(codes + at, mask, win, a, b);
      if constexpr (B <= 4) {
        __m512i v[4] = {a, _mm512_srli_epi16(a, B), _mm512_srli_epi16(a, 2 * B), _mm512_srli_epi16(a, 3 * B)};
        __m512i o[4];
        const int64_t g = group_of(k);
        const __m512i t = table(s, g);
        for (int j = 0; j < 4; ++j) o[j] = _mm512_permutexvar_epi16(v[j], t);
        // Eight words are 32 columns: where a group ends inside the vector the rest is looked up in its own table.
        for (int segment = 1; segment < 4; ++segment) {
          const int64_t other = group_of(k + 32 * segment);
          if (other == group_of(k + 32 * (segment - 1))) continue;
          const __m512i u = table(s, other);
          const __mmask32 keep = 0xffffffffu << (8 * segment);
          for (int j = 0; j < 4; ++j) o[j] = _mm512_mask_permutexvar_epi16(o[j], keep, v[j], u);
        }
        for (int j = 0; j < 4; ++j) _mm512_storeu_si512(out + 32 * (w.table ? j ^ 1 : j), o[j]);
      } else {
        const __m512i low = _mm512_set1_epi16((1 << B) - 1);
        const int64_t g0 = group_of(k), g1 = group_of(k + 32);
        const __m512i v[2] = {_mm512_and_si512(a, low), _mm512_and_si512(b, low)};
        for (int j = 0; j < 2; ++j) {
          const __m512 f0 = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(v[j])));
          const __m512 f1 = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(v[j], 1)));
          const __m512 y0 = _mm512_mul_ps(_mm512_sub_ps(f0, _mm512_set1_ps(s[padded + g0])), _mm512_set1_ps(s[g0]));
          const __m512 y1 = _mm512_mul_ps(_mm512_sub_ps(f1, _mm512_set1_ps(s[padded + g1])), _mm512_set1_ps(s[g1]));
          _mm512_storeu_si512(out + 32 * j, to_bf16(y0, y1));
        }
      }
    }
  }
};

// A row of bf16(scale · (code − zero)) in its own order, for a dense product: the 16-bit window of each of 32 codes is cut out
// of the stream and looked up. Groups are multiples of 32.
template <int B, bool WHOLE>
void expand_row(const PackedWeight& w, int64_t row, const Windows& win, float* buffer, uint16_t* out) {
  const uint8_t* codes = w.codes + row * w.row_bytes;
  const int64_t padded = w.groups + 16, group = w.groups == 1 ? w.k : w.group, at = w.per_tensor ? 0 : row;
  load_group_row(w.scale, w.scale_dtype, at, w.groups, buffer);
  if (w.zero)
    load_group_row(w.zero, U8, at, w.groups, buffer + padded);
  else
    std::fill(buffer + padded, buffer + 2 * padded, float(1 << (B - 1)));
  const __m512i low = _mm512_set1_epi16((1 << B) - 1);
  const __m512 first = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int64_t k0 = 0, g = 0; k0 < w.k; k0 += group, ++g) {
    const int64_t k1 = std::min(k0 + group, w.k);
    const __m512 f = _mm512_set1_ps(buffer[g]), z = _mm512_set1_ps(buffer[padded + g]);
    const auto times = [&](__m512 c) { return _mm512_mul_ps(_mm512_sub_ps(c, z), f); };
    const auto join = [&](__m512 a, __m512 b) { return to_bf16(times(a), times(b)); };
    // Up to five bits a table of 32 values holds every code, as often as it fits.
    const auto code = [&](float from) {
      return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_cvtps_epi32(_mm512_add_ps(first, _mm512_set1_ps(from))),
                                                 _mm512_set1_epi32((1 << B) - 1)));
    };
    __m512i table = join(code(0), code(16));
    if (w.table) {
      const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(w.table), f);
      table = to_bf16(value, value);
    }
    for (int64_t k = k0; k < k1; k += 32) {
      const int64_t from = k * B / 8;
      const __m512i raw = WHOLE ? _mm512_loadu_si512(codes + from)
                                : _mm512_maskz_loadu_epi8(low_bytes(std::min<int64_t>(4 * B, w.row_bytes - from)), codes + from);
      const __m512i word = _mm512_srlv_epi16(_mm512_permutexvar_epi8(win.bytes0, raw), win.shift0);
      __m512i v;
      if constexpr (B <= 5) {
        v = _mm512_permutexvar_epi16(word, table);
      } else {
        const __m512i number = _mm512_and_si512(word, low);
        v = join(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(number))),
                 _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(number, 1))));
      }
      if (k + 32 <= w.k)
        _mm512_storeu_si512(out + k, v);
      else
        _mm512_mask_storeu_epi16(out + k, low_words(w.k - k), v);
    }
  }
}

template <int B>
void expand(const PackedWeight& w, int64_t r0, int64_t r1, uint16_t* out) {
  alignas(64) uint8_t bytes[64];
  alignas(64) uint16_t shift[32];
  for (int i = 0; i < 32; ++i) {
    const int bit = (w.table ? i ^ 1 : i) * B;
    bytes[2 * i] = uint8_t(bit / 8);
    bytes[2 * i + 1] = uint8_t(std::min(bit / 8 + 1, 4 * B - 1));
    shift[i] = uint16_t(bit % 8);
  }
  Windows win;
  win.bytes0 = _mm512_load_si512(bytes), win.shift0 = _mm512_load_si512(shift);
  Buffer<float> buffer(2 * (w.groups + 16));
  for (int64_t r = r0; r < r1; ++r) {
    const bool whole = (w.n - r - 1) * w.row_bytes >= 64;  // loads may reach into the next row, not beyond the weight
    if (whole)
      expand_row<B, true>(w, r, win, buffer.data, out + (r - r0) * w.k);
    else
      expand_row<B, false>(w, r, win, buffer.data, out + (r - r0) * w.k);
  }
}

// Tiles of bf16(code − middle), exact, with scales and zero points left to the sums: the packed words are transposed
// before they are unpacked, so that a lane is a row, which is a quarter (or half) of the shuffles.
template <int B>
struct GroupedTiles {
  using F = Format<B>;
  const PackedWeight& w;
  int64_t group, row = 0, count = 0;
  Windows win = make_windows<B>();
  Tables tables = make_tables<B>(w.table);
  Buffer<float> scales, zeros, line;
  explicit GroupedTiles(const PackedWeight& weight)
      : w(weight), group(weight.groups == 1 ? 0 : weight.group), scales(weight.groups * kTileN),
        zeros(weight.groups * kTileN), line(weight.groups + 16) {
    if (group == 0) group = ceil_div(w.k, 128) * 128;
  }
  const float* scale(int64_t g) const { return scales.data + g * kTileN; }
  const float* zero(int64_t g) const { return zeros.data + g * kTileN; }

  void begin(int64_t first, int64_t n) {
    row = first, count = n;
    for (int64_t i = 0; i < kTileN; ++i) {
      const int64_t at = w.per_tensor ? 0 : std::min(row + i, w.n - 1);
      load_group_row(w.scale, w.scale_dtype, at, w.groups, line.data);
      for (int64_t g = 0; g < w.groups; ++g) scales.data[g * kTileN + i] = line.data[g];
      if (!w.zero) continue;
      load_group_row(w.zero, U8, at, w.groups, line.data);
      for (int64_t g = 0; g < w.groups; ++g) zeros.data[g * kTileN + i] = float(1 << (B - 1)) - line.data[g];
    }
  }

  void fill(int64_t k0, int64_t k1, uint32_t* tile) const {
    constexpr int64_t kAhead = 256;
    const int swap = w.table ? 1 : 0;
    const int64_t first = k0 / F::block * F::bytes, last = k1 / F::block * F::bytes;
    for (int64_t h = 0; h < kTileN; h += 16) {
      const uint8_t* codes[16];
      const int64_t safe = whole_vectors<B>(w, std::min(row + h + 16, w.n) - 1) * F::bytes;
      for (int64_t i = 0; i < 16; ++i) codes[i] = w.codes + std::min(row + h + i, w.n - 1) * w.row_bytes;
      for (int64_t k = k0; k < k1; k += F::block) {
        const int64_t at = k / F::block * F::bytes;
        const __mmask64 mask = low_bytes(std::clamp<int64_t>(w.row_bytes - at, 0, F::bytes));
        __m512i a[16], unused;
        // Sixteen rows are more streams than the hardware prefetches; past the chunk the next sixteen rows begin.
        const int64_t ahead = at + kAhead < last ? at + kAhead : at + kAhead - last + first + 16 * w.row_bytes;
        for (int i = 0; i < 16; ++i) {
          _mm_prefetch(reinterpret_cast<const char*>(codes[i] + ahead), _MM_HINT_T0);
          if (at < safe)
            load_words<B, true>(codes[i] + at, mask, win, a[i], unused);
          else
            load_words<B, false>(codes[i] + at, mask, win, a[i], unused);
        }
        transpose_16x16(a);
        uint32_t* out = tile + (k - k0) / 2 * kTileN + h;
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j)
#pragma GCC unroll 4
          for (int v = 0; v < F::width; ++v)
            _mm512_store_si512(out + pair_at(j, v ^ swap, F::width) * kTileN, unpack(a[j], v));
      }
    }
  }

  __m512i unpack(__m512i words, int v) const {
    if constexpr (B <= 4) {
      return _mm512_permutexvar_epi16(v ? _mm512_srli_epi16(words, v * B) : words, tables.low);
    } else {
      // 2^23 + byte as a float is the byte's bits under a constant; the difference is exact and fits bf16.
      const __m512i low = _mm512_set1_epi32(0xff), magic = _mm512_set1_epi32(0x4b000000);
      const __m512 shift = _mm512_set1_ps(8388608.f + 128.f);
      const auto number = [&](int at) {
        const __m512i byte = _mm512_and_si512(at ? _mm512_srli_epi32(words, at) : words, low);
        return _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(_mm512_or_si512(byte, magic)), shift));
      };
      const __m512i first = number(8 * v), second = number(8 * v + 16);
      return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(first, 16), second);
    }
  }
};

template <int B>
bool linear(const Input& x, const PackedWeight& w, const Output& y, const Parallel& parallel) {
  using F = Format<B>;
  const bool one_group = w.groups == 1;
  // Lanes of 8 or 4 columns must not straddle two groups, and a vector must not see more than 16.
  const bool can_decode = one_group || w.group % (2 * F::width) == 0;
  const bool can_tile = x.dtype == BF16 && (one_group || w.group % 32 == 0);
  // From nine rows on unpacking once for all of them is the faster road.
  if (can_decode && (x.rows <= 8 || (kMultipliesBf16 && !can_tile && x.rows <= 32))) {
    decode<B>(x, w, y, parallel);
    return true;
  }
  if (!can_tile) return false;
  constexpr Order order{F::width};
  if constexpr (B <= 4 || B == 8) {
    // Short groups cost a pass over the sums each; many rows pay for that more than for scaled weights.
    if (one_group || w.group >= 128 || x.rows <= 64) {
      tiled_linear(x, y, w.n, order, w.zero != nullptr, parallel, [&] { return std::make_unique<GroupedTiles<B>>(w); });
      return true;
    }
  }
  tiled_linear(x, y, w.n, order, false, parallel, [&] { return std::make_unique<TileFromRows<Decoder<B>>>(order, w); });
  return true;
}

}  // namespace

bool expand_rows(const PackedWeight& w, int64_t r0, int64_t r1, uint16_t* out) {
  if (w.groups != 1 && w.group % 32) return false;
  switch (w.bits) {
    case 2: return expand<2>(w, r0, r1, out), true;
    case 3: return expand<3>(w, r0, r1, out), true;
    case 4: return expand<4>(w, r0, r1, out), true;
    case 5: return expand<5>(w, r0, r1, out), true;
    case 6: return expand<6>(w, r0, r1, out), true;
    case 7: return expand<7>(w, r0, r1, out), true;
    case 8: return expand<8>(w, r0, r1, out), true;
    default: return false;
  }
}

bool packed_linear(const Input& x, const PackedWeight& w, const Output& y, const Parallel& parallel) {
  const Product product{w, y};
  if (packed_integers(x, &product, 1, parallel)) return true;
  if (w.table && x.dtype != BF16) return false;  // the table is rounded to bf16 in the registers
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

}  // namespace ck::CK_ISA
