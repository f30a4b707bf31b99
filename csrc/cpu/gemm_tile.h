// The register-blocked matrix product under the convolution norms. Operands are packed in panels of kPanel columns:
// element (k, c) of panel p lies at p * depth * kPanel + k * kPanel + c, so one copy is the left and the right side.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "simd.h"

// PYENGM_PER_WIDTH(DEFINE) expands DEFINE(target attribute, bytes of a vector) once per instruction set. Unlike in
// PYENGM_CLONES the vector width is a constant in each version, because what fits the registers depends on it.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define PYENGM_PER_WIDTH(DEFINE)                        \
  DEFINE(__attribute__((target("arch=x86-64-v4"))), 64) \
  DEFINE(__attribute__((target("arch=x86-64-v3"))), 32) \
  DEFINE(__attribute__((target("default"))), 16)
#else
#define PYENGM_PER_WIDTH(DEFINE) DEFINE(, 16)
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only

namespace pyengm::cpu {

template <typename T>
constexpr int64_t kPanel = 128 / sizeof(T);  // two vectors of the widest kind

template <int64_t Bytes>
constexpr int64_t kRows = Bytes == 64 ? 8 : 4;  // rows by two vectors of sums: half of the registers

template <typename T, int64_t Bytes>
struct Simd;
#define PYENGM_SIMD(T, Bits, Bytes)                        \
  template <>                                              \
  struct Simd<T, Bytes> {                                  \
    typedef T Vector __attribute__((vector_size(Bytes)));  \
    typedef Bits Mask __attribute__((vector_size(Bytes))); \
    static constexpr int64_t lanes = Bytes / sizeof(T);    \
  }
PYENGM_SIMD(float, int32_t, 16);
PYENGM_SIMD(float, int32_t, 32);
PYENGM_SIMD(float, int32_t, 64);
PYENGM_SIMD(double, int64_t, 16);
PYENGM_SIMD(double, int64_t, 32);
PYENGM_SIMD(double, int64_t, 64);
#undef PYENGM_SIMD

inline int64_t ceil_to(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

// Memory that starts as zeros, at the beginning of a cache line.
class AlignedZeros {
 public:
  template <typename T>
  T* allocate(int64_t count) {
    lines_.resize(ceil_to(count * sizeof(T), sizeof(Line)) / sizeof(Line));
    return reinterpret_cast<T*>(lines_.data());
  }

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  std::vector<Line> lines_;
};

template <typename V, typename T>
PYENGM_INLINE V load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);  // a vector move without an alignment
  return v;
}
template <typename V, typename T>
PYENGM_INLINE void store(T* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// out (Rows, 2 vectors), row stride ld = sum over k < depth of left[k][row] * right[k][column].
template <typename T, int64_t Bytes, int64_t Rows>
PYENGM_INLINE void multiply_block(int64_t depth, const T* __restrict left, const T* __restrict right, T* __restrict out,
                                  int64_t ld) {
  using V = typename Simd<T, Bytes>::Vector;
  constexpr int64_t lanes = Simd<T, Bytes>::lanes;
  V sum[Rows][2] = {};
  for (int64_t k = 0; k < depth; ++k, left += kPanel<T>, right += kPanel<T>) {
    const V b[2] = {load<V>(right), load<V>(right + lanes)};
#pragma GCC unroll 8
    for (int64_t r = 0; r < Rows; ++r) {
      sum[r][0] += left[r] * b[0];
      sum[r][1] += left[r] * b[1];
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < Rows; ++r) {
    store(out + r * ld, sum[r][0]);
    store(out + r * ld + lanes, sum[r][1]);
  }
}

// The same for a whole panel of columns.
template <typename T, int64_t Bytes, int64_t Rows>
PYENGM_INLINE void multiply_panel(int64_t depth, const T* left, const T* right, T* out, int64_t ld) {
  for (int64_t c = 0; c < kPanel<T>; c += 2 * Simd<T, Bytes>::lanes)
    multiply_block<T, Bytes, Rows>(depth, left, right + c, out + c, ld);
}

// run columns of one panel: out[c * kPanel + i] = in[c * to_channel + i * to_column].
template <typename T>
PYENGM_INLINE void pack_run(T* out, const T* in, int64_t channels, int64_t run, int64_t to_channel, int64_t to_column) {
  if (to_column == 1 && run % 4 == 0) {  // contiguous images
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < run; i += 4) std::memcpy(out + c * kPanel<T> + i, in + c * to_channel + i, 4 * sizeof(T));
  } else if (to_channel == 1) {  // channels_last: transposed in blocks that the innermost cache holds
    for (int64_t begin = 0; begin < channels; begin += 64)
      for (int64_t i = 0; i < run; ++i)
        for (int64_t c = begin; c < std::min<int64_t>(begin + 64, channels); ++c)
          out[c * kPanel<T> + i] = in[c + i * to_column];
  } else {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < run; ++i) out[c * kPanel<T> + i] = in[c * to_channel + i * to_column];
  }
}

// Packs (channels, rows, columns) into panels: pixel (y, x) becomes column y * pitch + x, the channel becomes k.
// Columns between the image rows do not change.
template <typename T>
PYENGM_INLINE void pack_pixels(T* out, const T* in, int64_t channels, int64_t rows, int64_t columns, int64_t pitch,
                               int64_t to_channel, int64_t to_row, int64_t to_column) {
  if (columns == pitch && to_row == pitch * to_column) {  // rows without a gap are one long row
    columns *= rows;
    rows = 1;
  }
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t x = 0, run; x < columns; x += run) {
      const int64_t t = y * pitch + x, lane = t % kPanel<T>;
      run = std::min(columns - x, kPanel<T> - lane);
      T* panel = out + t / kPanel<T> * channels * kPanel<T>;
      const T* from = in + y * to_row + x * to_column;
      if (run == kPanel<T>)  // a constant length
        pack_run(panel, from, channels, kPanel<T>, to_channel, to_column);
      else
        pack_run(panel + lane, from, channels, run, to_channel, to_column);
    }
}

}  // namespace pyengm::cpu
