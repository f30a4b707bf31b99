// Arithmetic of some 45 bits on pairs of float32: most GPUs have 64 times as many units for float32 as for float64.
//
// It needs fused multiply-adds that are written as such, and no other: the kernels are compiled with -fmad=false.
#pragma once
#include <cmath>

namespace pyengm::cuda {

struct FloatPair {
  float high, low;  // of the number high + low; |low| is at most half a unit in the last place of high
};

__device__ __forceinline__ FloatPair pair_of(double value) {
  const float high = float(value);
  return {high, float(value - double(high))};
}

// a - b, exactly (Knuth, The Art of Computer Programming, volume 2, 4.2.2, theorem B).
__device__ __forceinline__ FloatPair exact_difference(float a, float b) {
  const float high = a - b, other = high - a;
  return {high, (a - (high - other)) - (b + other)};
}

// A sum of products. `high` begins with a number that is large beside their sum, so that high - start is exact, and so
// is what `high` loses with a product, but for one rounding: it goes to `low` (Ogita, Rump and Oishi 2005; Rump, Ogita
// and Oishi 2008).
struct PairSum {
  float start = 0.0f, high = 0.0f, low = 0.0f;

  // largest: of the sum of the absolute products until the next call; at most 2^124.
  __device__ __forceinline__ void begin(float largest) { start = high = 3.0f * largest; }
  __device__ __forceinline__ float exact_part() const { return high - start; }
};

__device__ __forceinline__ void add_product(PairSum& sum, float a, float b) {
  const float before = sum.high;
  sum.high = fmaf(a, b, before);
  sum.low += fmaf(a, b, before - sum.high);
}
__device__ __forceinline__ void add_product(PairSum& sum, float a, FloatPair b) {
  const float before = sum.high;
  sum.high = fmaf(a, b.high, before);
  sum.low += fmaf(a, b.low, fmaf(a, b.high, before - sum.high));
}
__device__ __forceinline__ void add_product(PairSum& sum, FloatPair a, FloatPair b) {
  const float before = sum.high;
  sum.high = fmaf(a.high, b.high, before);
  const float rest = fmaf(a.high, b.high, before - sum.high);
  sum.low += fmaf(a.low, b.high, fmaf(a.high, b.low, rest));  // a.low * b.low is below 2^-48 of the product
}

__device__ __forceinline__ float first_float(float value) { return value; }
__device__ __forceinline__ float first_float(FloatPair value) { return value.high; }

// Whether all are 0, or the largest is such that products with the like are far within the range of float32: what is
// lost of smaller ones is then below 2^-48 of the product of the largest. nan stays what it is in either arithmetic.
__device__ __forceinline__ bool moderate(float largest) {
  return largest == 0.0f | (largest >= 0x1p-50f & largest <= 0x1p60f);
}

// Adds Terms (row_norms.h) of elements a and b to sums and to `low` of pairs, which belongs to the sums. Where products
// may leave the range of float32, it calls in_double() in place of this.
template <typename Terms, int Width, typename B, typename InDouble>
__device__ __forceinline__ void add_in_pairs(double* sums, PairSum* pairs, const float (&a)[Width], const B (&b)[Width],
                                             const InDouble& in_double) {
  float most_a = 0.0f, most_b = 0.0f;
#pragma unroll
  for (int j = 0; j < Width; ++j) {
    most_a = fmaxf(most_a, fabsf(a[j]));
    most_b = fmaxf(most_b, fabsf(first_float(b[j])));
  }
  if (!(moderate(most_a) & moderate(most_b))) return in_double();
  float largest[Terms::count] = {};
  Terms::add(largest, most_a, most_b);
#pragma unroll
  for (int k = 0; k < Terms::count; ++k) pairs[k].begin(Width * largest[k]);
#pragma unroll
  for (int j = 0; j < Width; ++j) Terms::add(pairs, a[j], b[j]);
#pragma unroll
  for (int k = 0; k < Terms::count; ++k) sums[k] += double(pairs[k].exact_part());
}

}  // namespace pyengm::cuda
