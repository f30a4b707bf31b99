// Conversions of binary16 as PTX defines them, by the compiler's own type: nothing in common with csrc/storage.h.
#pragma once
#include <cstring>

struct __half {
  unsigned short bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }

inline float __half2float(__half value) {
  _Float16 same;
  memcpy(&same, &value, sizeof same);
  return float(same);
}

inline __half __float2half_rn(float value) {
  if (value != value) return {0x7fff};  // the nan of PTX
  const _Float16 rounded = _Float16(value);
  __half same;
  memcpy(&same, &rounded, sizeof same);
  return same;
}
