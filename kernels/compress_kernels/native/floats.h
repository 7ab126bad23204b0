// A register of floats as the compiler's own vectors: load, store, round, exponentiate, sum. For every instruction set; CK_ISA
// names the namespace.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace ck::CK_ISA {
namespace step {

// As wide as a register: wider ones the compiler keeps in memory, and converts number by number.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
// Read and written through pointers: of a memcpy the compiler makes moves of 16 bytes through the stack.
typedef float Floats __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

struct Bf16 { uint16_t bits; };

inline float widen(Bf16 v) {
  const uint32_t bits = uint32_t(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline float widen(float v) { return v; }

inline void narrow(float f, float& out) { out = f; }
inline void narrow(float f, Bf16& out) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  out.bits = nan ? uint16_t(bits >> 16) | 0x40 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline Floats load(const float* p) { return *reinterpret_cast<const Floats*>(p); }
inline Floats load(const Bf16* p) {
  const Words words = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Words) << 16;
  return (Floats)words;
}

inline void store(float* p, const Floats& v) { *reinterpret_cast<Floats*>(p) = v; }
inline void store(Bf16* p, const Floats& v) {
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
  *reinterpret_cast<Halves*>(p) = __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded, Halves);
}
// As it is once it has been stored and loaded.
inline Floats rounded(const Floats& v, float) { return v; }
inline Floats rounded(const Floats& v, Bf16) {
  Bf16 kept[kLanes];
  store(kept, v);
  return load(kept);
}
inline Floats all(float f) { return Floats{} + f; }

// e^x within 2 ulp: 2^n · p(r), n the nearest integer of x / ln 2, p the polynomial of Cephes' expf.
inline Floats exp(Floats x) {
  x = x > 88.f ? all(88.f) : x < -87.f ? all(-87.f) : x;  // NaN stays
  const Floats n = (x * 1.44269504f + 12582912.f) - 12582912.f;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = p * r + c;
  p = p * r * r + r + 1.f;
  typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
  return (Floats)((Ints)p + (__builtin_convertvector(n, Ints) << 23));
}

inline float sum(const Floats& v) {
  float part[kLanes];
  std::memcpy(part, &v, sizeof v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  return part[0];
}

}  // namespace step
}  // namespace ck::CK_ISA
