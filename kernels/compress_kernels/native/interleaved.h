// Weights whose words of sixteen rows lie side by side, for everything that reads rows as they lie on disk.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "isa.h"

namespace ck {

constexpr int64_t kInterleavedRows = 16;

// Rows r0 … r1 of an interleaved weight as a weight of its own, in the order on disk.
class PlainRows {
 public:
  PlainRows(const PackedWeight& from, int64_t r0, int64_t r1) : w(from) {
    w.n = r1 - r0, w.interleaved = false;
    codes_.resize(w.n * w.row_bytes + 64);  // kernels load whole vectors
    w.codes = codes_.data();
    copy(from.codes, w.row_bytes / 4, 4, r0, r1, codes_.data());
    if (w.per_tensor) return;
    const int64_t size = w.scale_dtype == F32 ? 4 : 2;
    scale_.resize(w.n * w.groups * size + 64), w.scale = scale_.data();
    copy(static_cast<const uint8_t*>(from.scale), w.groups, size, r0, r1, scale_.data());
    if (!w.zero) return;
    zero_.resize(w.n * w.groups + 64), w.zero = zero_.data();
    copy(from.zero, w.groups, 1, r0, r1, zero_.data());
  }
  PlainRows(const PlainRows&) = delete;

  PackedWeight w;
  uint8_t* bytes() { return codes_.data(); }  // of the codes

 private:
  std::vector<uint8_t> codes_, scale_, zero_;

  static void copy(const uint8_t* from, int64_t width, int64_t size, int64_t r0, int64_t r1, uint8_t* out) {
    if (size == 4) return copy<4>(from, width, r0, r1, out);
    if (size == 2) return copy<2>(from, width, r0, r1, out);
    copy<1>(from, width, r0, r1, out);
  }

  // `width` numbers of SIZE bytes for each row.
  template <int SIZE>
  static void copy(const uint8_t* from, int64_t width, int64_t r0, int64_t r1, uint8_t* out) {
    constexpr int64_t R = kInterleavedRows;
    for (int64_t first = r0 / R * R; first < r1; first += R) {
      const int64_t begin = std::max(r0, first), end = std::min(r1, first + R);
      const uint8_t* block = from + first * width * SIZE;
      if (SIZE == 4 && end - begin == R && plain_block(block, width, out + (first - r0) * width * SIZE)) continue;
      for (int64_t j = 0; j < width; ++j)
        for (int64_t r = begin; r < end; ++r)
          std::memcpy(out + ((r - r0) * width + j) * SIZE, block + (j * R + r - first) * SIZE, SIZE);
    }
  }
};

struct PlaceMasks {  // of eight columns, by the places of what they keep
  uint8_t of[256];
  constexpr PlaceMasks() : of{} {
    for (int p = 0; p < 256; ++p) of[p] = uint8_t(1 << (p & 3) | 1 << (p >> 2 & 3) | 16 << (p >> 4 & 3) | 16 << (p >> 6));
  }
};

// Rows r0 … r1 of interleaved 2:4 codes as a weight of its own, under a bit mask.
class PlainSparseRows {
 public:
  PlainSparseRows(const SparseWeight& from, int64_t r0, int64_t r1) : w(from) {
    const PackedWeight codes{from.values, from.k / 4, from.n, from.k, 4, from.scale, from.scale_dtype, nullptr, from.group, from.groups,
                             from.per_tensor};
    const PackedWeight places{from.mask, from.mask_bytes, from.n, from.k, 2, from.scale, from.scale_dtype, nullptr, from.group,
                              from.groups, true};
    codes_ = std::make_unique<PlainRows>(codes, r0, r1), places_ = std::make_unique<PlainRows>(places, r0, r1);
    w.n = r1 - r0, w.interleaved = false, w.scale = codes_->w.scale;
    w.values = codes_->bytes(), w.value_bytes = w.n * from.k / 4, w.mask = places_->bytes();
    for (int64_t i = 0; i < w.value_bytes; ++i) codes_->bytes()[i] ^= 0x88;
    static constexpr PlaceMasks masks;
    for (int64_t i = 0; i < w.n * w.mask_bytes; ++i) places_->bytes()[i] = masks.of[places_->bytes()[i]];
    start_.resize(w.n + 1);
    for (int64_t r = 0; r <= w.n; ++r) start_[r] = r * from.k * 2;
    w.start = start_.data();
  }
  PlainSparseRows(const PlainSparseRows&) = delete;

  SparseWeight w;

 private:
  std::unique_ptr<PlainRows> codes_, places_;
  std::vector<int64_t> start_;
};

// What one output has from row r0 of the weight on.
inline Output from_row(const Output& y, int64_t r0) {
  Output part = y;
  part.data = static_cast<char*>(y.data) + r0 * (y.dtype == F32 ? 4 : 2);
  if (y.bias) part.bias = y.bias + r0;
  if (y.residual) part.residual = y.residual + r0;
  return part;
}

}  // namespace ck
