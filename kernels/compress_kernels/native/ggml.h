// The block types of ggml, one number at a time: where the scales and codes of a block lie. A value is step · code + low for the
// step and the low end of its sub-block. In an unnamed namespace: every file has its own copy, for its own flags.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace ck {
namespace {

inline float bits_to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline float half_to_float(uint16_t h) {
#ifdef __F16C__
  return _cvtsh_ss(h);
#else
  const uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  const float f = bits_to_float(magnitude << 13) * bits_to_float(0x77800000);  // 2^112: the difference of the biases
  return sign ? -f : f;
#endif
}

inline float half_at(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return half_to_float(h);
}

// Of every type: kColumns and kBytes of a block, kGroup columns of a sub-block, kZero that is taken from a code,
// steps(block, step, low) for all sub-blocks, and code(block, column), −128 … 127 where kSigned.
// `nibbles`: sixteen bytes hold the codes of columns 0 … 15 in their low halves and of 16 … 31 in their high halves.
inline int nibble_of(const uint8_t* nibbles, int i) { return i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4; }

template <int Header, int Zero>
struct Simple {  // blocks of 32: an fp16 scale, Header bytes in all before the nibbles
  static constexpr int kColumns = 32, kBytes = Header + 16, kGroup = 32, kNibbles = Header;
  static constexpr float kZero = Zero;
  static constexpr bool kSigned = false;
  static void steps(const uint8_t* p, float* step, float* low) {
    step[0] = half_at(p);
    low[0] = -kZero * step[0];
  }
  static int code(const uint8_t* p, int i) { return nibble_of(p + Header, i); }
};

template <int Header>
struct SimpleMinimum : Simple<Header, 0> {
  static void steps(const uint8_t* p, float* step, float* low) {
    step[0] = half_at(p);
    low[0] = half_at(p + 2);
  }
};

template <typename Base, int Bits>
struct WithFifthBit : Base {  // 32 fifth bits at byte Bits
  static constexpr int kFifth = Bits;
  static int code(const uint8_t* p, int i) { return Base::code(p, i) | (p[Bits + i / 8] >> (i % 8) & 1) << 4; }
};

using Q4_0 = Simple<2, 8>;
using Q4_1 = SimpleMinimum<4>;
using Q5_0 = WithFifthBit<Simple<6, 16>, 2>;
using Q5_1 = WithFifthBit<SimpleMinimum<8>, 4>;

struct Q8_0 {
  static constexpr int kColumns = 32, kBytes = 34, kGroup = 32;
  static constexpr float kZero = 0;
  static constexpr bool kSigned = true;
  static void steps(const uint8_t* p, float* step, float* low) {
    step[0] = half_at(p);
    low[0] = 0.f;
  }
  static int code(const uint8_t* p, int i) { return int8_t(p[2 + i]); }
};

struct Q2_K {
  static constexpr int kColumns = 256, kBytes = 84, kGroup = 16;
  static constexpr float kZero = 0;
  static constexpr bool kSigned = false;
  static void steps(const uint8_t* p, float* step, float* low) {
    const float d = half_at(p + 80), m = half_at(p + 82);
    for (int g = 0; g < 16; ++g) {
      step[g] = d * float(p[g] & 15);
      low[g] = -(m * float(p[g] >> 4));
    }
  }
  static int code(const uint8_t* p, int i) { return p[16 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3; }
};

struct Q3_K {
  static constexpr int kColumns = 256, kBytes = 110, kGroup = 16;
  static constexpr float kZero = 4;
  static constexpr bool kSigned = false;
  static void steps(const uint8_t* p, float* step, float* low) {
    const float d = half_at(p + 108);
    const uint8_t* s = p + 96;
    for (int g = 0; g < 16; ++g) {
      const int first = g < 8 ? s[g] & 15 : s[g - 8] >> 4, high = s[8 + g % 4] >> g / 4 * 2 & 3;
      step[g] = d * float((first | high << 4) - 32);
      low[g] = -kZero * step[g];
    }
  }
  static int code(const uint8_t* p, int i) {
    const int high = p[i % 32] >> i / 32 & 1;
    return (p[32 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) | high << 2;
  }
};

inline void q4_steps(const uint8_t* p, float* step, float* low) {
  const float d = half_at(p), m = half_at(p + 2);
  const uint8_t* s = p + 4;
  for (int g = 0; g < 4; ++g) {
    step[g] = d * float(s[g] & 63);
    low[g] = -(m * float(s[4 + g] & 63));
    step[4 + g] = d * float((s[8 + g] & 15) | s[g] >> 6 << 4);
    low[4 + g] = -(m * float(s[8 + g] >> 4 | s[4 + g] >> 6 << 4));
  }
}

struct Q4_K {
  static constexpr int kColumns = 256, kBytes = 144, kGroup = 32;
  static constexpr float kZero = 0;
  static constexpr bool kSigned = false;
  static void steps(const uint8_t* p, float* step, float* low) { q4_steps(p, step, low); }
  static int code(const uint8_t* p, int i) { return p[16 + i / 64 * 32 + i % 32] >> i / 32 % 2 * 4 & 15; }
};

struct Q5_K {
  static constexpr int kColumns = 256, kBytes = 176, kGroup = 32;
  static constexpr float kZero = 0;
  static constexpr bool kSigned = false;
  static void steps(const uint8_t* p, float* step, float* low) { q4_steps(p, step, low); }
  static int code(const uint8_t* p, int i) {
    return (p[48 + i / 64 * 32 + i % 32] >> i / 32 % 2 * 4 & 15) | (p[16 + i % 32] >> i / 32 & 1) << 4;
  }
};

struct Q6_K {
  static constexpr int kColumns = 256, kBytes = 210, kGroup = 16;
  static constexpr float kZero = 32;
  static constexpr bool kSigned = false;
  static void steps(const uint8_t* p, float* step, float* low) {
    const float d = half_at(p + 208);
    for (int g = 0; g < 16; ++g) {
      step[g] = d * float(int8_t(p[192 + g]));
      low[g] = -kZero * step[g];
    }
  }
  static int code(const uint8_t* p, int i) {
    const int half = i / 128, part = i % 128 / 32, at = i % 32;
    return (p[64 * half + part % 2 * 32 + at] >> part / 2 * 4 & 15) | (p[128 + 32 * half + at] >> 2 * part & 3) << 4;
  }
};

constexpr int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kDoubledE2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct IQ4_NL {
  static constexpr int kColumns = 32, kBytes = 18, kGroup = 32;
  static constexpr float kZero = 0;
  static constexpr bool kSigned = true;
  static constexpr const int8_t* kTable = kIQ4Values;
  static const uint8_t* nibbles(const uint8_t* p, int) { return p + 2; }
  static void steps(const uint8_t* p, float* step, float* low) { Q8_0::steps(p, step, low); }
  static int code(const uint8_t* p, int i) { return kTable[nibble_of(p + 2, i)]; }
};

struct IQ4_XS {
  static constexpr int kColumns = 256, kBytes = 136, kGroup = 32;
  static constexpr float kZero = 0;
  static constexpr bool kSigned = true;
  static constexpr const int8_t* kTable = kIQ4Values;
  static const uint8_t* nibbles(const uint8_t* p, int piece) { return p + 8 + 16 * piece; }
  static void steps(const uint8_t* p, float* step, float* low) {
    const float d = half_at(p);
    const int high = p[2] | p[3] << 8;
    for (int g = 0; g < 8; ++g) {
      step[g] = d * float(((p[4 + g / 2] >> g % 2 * 4 & 15) | (high >> 2 * g & 3) << 4) - 32);
      low[g] = 0.f;
    }
  }
  static int code(const uint8_t* p, int i) { return kTable[nibble_of(nibbles(p, i / 32), i % 32)]; }
};

struct MXFP4 {
  static constexpr int kColumns = 32, kBytes = 17, kGroup = 32;
  static constexpr float kZero = 0;
  static constexpr bool kSigned = true;
  static constexpr const int8_t* kTable = kDoubledE2M1;
  static const uint8_t* nibbles(const uint8_t* p, int) { return p + 1; }
  static void steps(const uint8_t* p, float* step, float* low) {
    // Byte e is 2^(e − 128): with the bias of 127 the exponent e − 1, and below it a number without a leading one.
    step[0] = bits_to_float(p[0] >= 2 ? uint32_t(p[0] - 1) << 23 : 0x00200000u << p[0]);
    low[0] = 0.f;
  }
  static int code(const uint8_t* p, int i) { return kTable[nibble_of(p + 1, i)]; }
};

// Calls f with a value of the type of this number (enum ggml_type); false where there is none.
template <typename F>
bool with_type(int type, F&& f) {
  switch (type) {
    case 2: return f(Q4_0{}), true;
    case 3: return f(Q4_1{}), true;
    case 6: return f(Q5_0{}), true;
    case 7: return f(Q5_1{}), true;
    case 8: return f(Q8_0{}), true;
    case 10: return f(Q2_K{}), true;
    case 11: return f(Q3_K{}), true;
    case 12: return f(Q4_K{}), true;
    case 13: return f(Q5_K{}), true;
    case 14: return f(Q6_K{}), true;
    case 20: return f(IQ4_NL{}), true;
    case 23: return f(IQ4_XS{}), true;
    case 39: return f(MXFP4{}), true;
    default: return false;
  }
}

}  // namespace
}  // namespace ck
