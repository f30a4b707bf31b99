// Rounding to bfloat16 as PTX defines it, through frexp: it has nothing in common with csrc/storage.h.
#pragma once
#include <cmath>
#include <cstring>

struct __nv_bfloat16 {
  unsigned short bits;
};

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  constexpr int kDigits = 8, kSmallest = -133;  // of a normal number; exponent of the smallest subnormal
  if (value != value) return {0x7fff};          // the nan of PTX
  float rounded = value;
  if (value != 0.0f && std::isfinite(value)) {
    int exponent;
    std::frexp(double(value), &exponent);
    const int unit = exponent - kDigits < kSmallest ? kSmallest : exponent - kDigits;
    const double nearest = std::ldexp(std::nearbyint(std::ldexp(double(value), -unit)), unit);
    rounded = std::fabs(nearest) >= 0x1p128 ? std::copysign(INFINITY, value) : float(nearest);
  }
  unsigned bits;
  memcpy(&bits, &rounded, sizeof bits);
  return {static_cast<unsigned short>(bits >> 16)};
}
