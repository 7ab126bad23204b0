// Codes under a bit mask as pairs of rows (SparseWeight::pairs), for everything that reads packed rows.
#pragma once

#include <memory>

#include "interleaved.h"

namespace ck {

constexpr int64_t kPairedRows = 32;     // rows r and r + 16 of them are a pair
constexpr int64_t kPairedColumns = 32;  // whose eight masks lie together, before their bytes

// The zero points of a lane of both halves, as one byte: what stands where a pair keeps nothing.
inline uint8_t pruned_pair(const SparseWeight& w, int64_t block, int64_t lane, int64_t group) {
  const auto zero = [&](int64_t half) -> int {
    if (!w.zero) return 8;
    return w.zero[w.per_tensor ? group : (half * w.groups + group) * kInterleavedRows + lane];
  };
  return uint8_t(zero(2 * block) | zero(std::min(2 * block + 1, w.n / kInterleavedRows - 1)) << 4);
}

// All codes of a block of 32 rows, zero points where nothing is kept, as interleaved words [2][k / 8][16].
inline void write_out_portably(const SparseWeight& w, int64_t block, uint8_t* out) {
  std::memset(out, 0, kPairedRows * w.k / 2);
  const uint8_t* from = w.values + w.start[block];
  for (int64_t c = 0; c < w.k; c += kPairedColumns) {
    const uint8_t* masks = from;
    from += 64;
    for (int64_t i = 0; i < 16 * kPairedColumns; ++i) {  // four columns of sixteen lanes, and so on
      const int64_t lane = i / 4 % 16, column = c + i / 64 * 4 + i % 4;
      const bool kept = masks[i / 8] >> (i % 8) & 1;
      const uint8_t pair = kept ? *from++ : pruned_pair(w, block, lane, w.groups == 1 ? 0 : column / w.group);
      uint8_t* const to = out + (column / 8 * 16 + lane) * 4 + column % 8 / 2;
      to[0] |= uint8_t((pair & 15) << column % 2 * 4), to[w.k * 8] |= uint8_t((pair >> 4) << column % 2 * 4);
    }
  }
}

// Rows r0 … r1 of pairs as packed rows of all columns, in the order on disk.
class WrittenRows {
 public:
  WrittenRows(const SparseWeight& from, int64_t r0, int64_t r1) {
    const int64_t b0 = r0 / kPairedRows, b1 = ceil_div(r1, kPairedRows), first = b0 * kPairedRows, row = from.k / 2;
    codes_.resize((b1 - b0) * kPairedRows * row);
    for (int64_t b = b0; b < b1; ++b) write_out(from, b, codes_.data() + (b - b0) * kPairedRows * row);
    const int64_t at = from.per_tensor ? 0 : first * from.groups;
    const PackedWeight all{codes_.data(), row, std::min(b1 * kPairedRows, from.n) - first, from.k, 4,
                           static_cast<const uint8_t*>(from.scale) + at * (from.scale_dtype == F32 ? 4 : 2), from.scale_dtype,
                           from.zero ? from.zero + at : nullptr, from.group, from.groups, from.per_tensor, true};
    plain_ = std::make_unique<PlainRows>(all, r0 - first, r1 - first);
    w = plain_->w;
  }
  WrittenRows(const WrittenRows&) = delete;

  PackedWeight w;

 private:
  std::vector<uint8_t> codes_;
  std::unique_ptr<PlainRows> plain_;
};

}  // namespace ck
