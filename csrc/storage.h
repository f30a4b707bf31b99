// Types that tensors are stored in. Arithmetic on 16-bit types is in float32; a result is rounded once, to nearest
// even, when it is stored. For host and device.
#pragma once
#include <cstdint>
#include <cstring>

#include "host_device.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace pyengm {

struct BFloat16 {
  uint16_t bits;
};
struct Half {  // IEEE binary16
  uint16_t bits;
};

template <typename T>
struct RealOf {
  using Type = T;
};
template <>
struct RealOf<BFloat16> {
  using Type = float;
};
template <>
struct RealOf<Half> {
  using Type = float;
};

// The type of arithmetic on T, and of values that belong to a whole example.
template <typename T>
using Real = typename RealOf<T>::Type;

#define PYENGM_EACH_STORAGE(MACRO) MACRO(float) MACRO(double) MACRO(BFloat16) MACRO(Half)

PYENGM_HD uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
PYENGM_HD float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

PYENGM_HD float widen(float value) { return value; }
PYENGM_HD double widen(double value) { return value; }
PYENGM_HD float widen(BFloat16 value) { return float_of(uint32_t(value.bits) << 16); }
PYENGM_HD float widen(Half value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t magnitude = value.bits & 0x7fffu, sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t rebias = magnitude < 0x7c00u ? 112u << 23 : 224u << 23;  // inf and nan keep the largest exponent
  const uint32_t subnormal = bits_of(float(int32_t(magnitude)) * 0x1p-24f);
  return float_of(sign | (magnitude < 0x400u ? subnormal : (magnitude << 13) + rebias));
#endif
}

template <typename T>
struct Narrow {
  static PYENGM_HD T of(T value) { return value; }
};
template <>
struct Narrow<BFloat16> {
  static PYENGM_HD BFloat16 of(float value) {
#ifdef __CUDA_ARCH__
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
    const uint32_t bits = bits_of(value), rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return {uint16_t(value == value ? rounded : 0x7fc0u)};
#endif
  }
};
template <>
struct Narrow<Half> {
  static PYENGM_HD Half of(float value) {
#ifdef __CUDA_ARCH__
    return {__half_as_ushort(__float2half_rn(value))};
#else
    const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);  // 0.5 has neighbours at 2^-24
    const uint32_t finite = magnitude < 113u << 23 ? subnormal : normal;
    const uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;  // from 65520 on: inf
    return {uint16_t((bits >> 16 & 0x8000u) | (magnitude < 0x477ff000u ? finite : large))};
#endif
  }
};

template <typename T>
PYENGM_HD T narrow(Real<T> value) {
  return Narrow<T>::of(value);
}

}  // namespace pyengm
