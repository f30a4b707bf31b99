// Per example a convolution's weight gradient and its squared norm: an implicit matrix product over output pixels.
// Left: one row per (input channel, kernel offset), read from a zero-padded copy of the image without another copy.
// Right: panels of output channels. Pixels are taken in blocks, whose right side is in the cache for all rows.
#include <algorithm>
#include <vector>

#include "gemm_tile.h"
#include "ops.h"

namespace pyengm::cpu {
namespace {

constexpr int64_t kPixels = 512;     // of a block: 64 KiB of a panel
constexpr int64_t kTransposed = 64;  // rows of a gradient written out at a time: 8 KiB of a panel

// Sizes and tables that all examples share.
struct Plan {
  const Conv2d& conv;
  int64_t height, pitch, rows, block;  // of the padded image; (channel, offset) pairs; image rows in a block
  std::vector<int64_t> starts;         // per row, the pixel of the padded image under output pixel (0, 0)

  explicit Plan(const Conv2d& c)
      : conv(c),
        height(c.x.height + 2 * c.padding[0]),
        pitch(c.x.width + 2 * c.padding[1]),
        rows(c.x.channels * c.kernel[0] * c.kernel[1]),
        block(std::max<int64_t>(kPixels / c.g.width, 1)) {
    for (int64_t channel = 0; channel < c.x.channels; ++channel)
      for (int64_t y = 0; y < c.kernel[0]; ++y)
        for (int64_t x = 0; x < c.kernel[1]; ++x)
          starts.push_back((channel * height + y * c.dilation[0]) * pitch + x * c.dilation[1]);
    starts.resize(ceil_to(rows, kRows<64>), 0);  // results of these rows are not read
  }

  int64_t panels(int64_t panel) const { return ceil_to(conv.g.channels, panel) / panel; }
};

// The memory of one thread. It starts as zeros, and padding is never written.
template <typename T>
struct Scratch {
  AlignedZeros memory;
  T *g, *gradient, *x;  // panels of (pixel, O); one panel of (row, O); the padded image

  explicit Scratch(const Plan& plan) {
    const int64_t panels = plan.panels(kPanel<T>) * kPanel<T>;
    const int64_t size_g = panels * plan.conv.g.height * plan.conv.g.width;
    const int64_t size_gradient = int64_t(plan.starts.size()) * kPanel<T>;
    g = memory.allocate<T>(size_g + size_gradient + plan.conv.x.channels * plan.height * plan.pitch);
    gradient = g + size_g;
    x = gradient + size_gradient;
  }
};

// Columns [c, c + 2 vectors) of a panel: out (Rows, kPanel) += sum over y < height, x < width of
// left[starts[row] + y * to_row + x * to_column] * right[pixel].
template <typename T, int64_t Bytes, int64_t Rows>
PYENGM_INLINE void add_products(T* out, const T* left, const int64_t* starts, const T* right, int64_t height,
                                int64_t width, int64_t to_row, int64_t to_column) {
  using V = typename Simd<T, Bytes>::Vector;
  constexpr int64_t lanes = Simd<T, Bytes>::lanes;
  V sum[Rows][2];
  const T* rows[Rows];
#pragma GCC unroll 8
  for (int64_t r = 0; r < Rows; ++r) {
    sum[r][0] = load<V>(out + r * kPanel<T>);
    sum[r][1] = load<V>(out + r * kPanel<T> + lanes);
    rows[r] = left + starts[r];
  }
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0, at = y * to_row; x < width; ++x, at += to_column, right += kPanel<T>) {
      const V b0 = load<V>(right), b1 = load<V>(right + lanes);
#pragma GCC unroll 8
      for (int64_t r = 0; r < Rows; ++r) {
        sum[r][0] += rows[r][at] * b0;
        sum[r][1] += rows[r][at] * b1;
      }
    }
#pragma GCC unroll 8
  for (int64_t r = 0; r < Rows; ++r) {
    store(out + r * kPanel<T>, sum[r][0]);
    store(out + r * kPanel<T> + lanes, sum[r][1]);
  }
}

// The same for one vector of columns, where a panel has no more. Two pixels at a time keep as many sums in flight.
template <typename T, int64_t Bytes, int64_t Rows>
PYENGM_INLINE void add_products_of_one_vector(T* out, const T* left, const int64_t* starts, const T* right,
                                              int64_t height, int64_t width, int64_t to_row, int64_t to_column) {
  using V = typename Simd<T, Bytes>::Vector;
  V even[Rows], odd[Rows];
  const T* rows[Rows];
#pragma GCC unroll 8
  for (int64_t r = 0; r < Rows; ++r) {
    even[r] = load<V>(out + r * kPanel<T>);
    odd[r] = V{};
    rows[r] = left + starts[r];
  }
  for (int64_t y = 0; y < height; ++y) {
    int64_t x = 0, at = y * to_row;
    for (; x + 1 < width; x += 2, at += 2 * to_column, right += 2 * kPanel<T>) {
      const V b0 = load<V>(right), b1 = load<V>(right + kPanel<T>);
#pragma GCC unroll 8
      for (int64_t r = 0; r < Rows; ++r) {
        even[r] += rows[r][at] * b0;
        odd[r] += rows[r][at + to_column] * b1;
      }
    }
    if (x < width) {
      const V b0 = load<V>(right);
#pragma GCC unroll 8
      for (int64_t r = 0; r < Rows; ++r) even[r] += rows[r][at] * b0;
      right += kPanel<T>;
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < Rows; ++r) store(out + r * kPanel<T>, even[r] + odd[r]);
}

// gradient (O, C, kh, kw) may be null.
template <typename T, int64_t Bytes>
PYENGM_INLINE double sqnorm(const Plan& plan, Scratch<T>& scratch, const T* x, const T* g, T* gradient) {
  constexpr int64_t panel = kPanel<T>, vector = Simd<T, Bytes>::lanes;
  const Images &in = plan.conv.x, &out = plan.conv.g;
  const int64_t pixels = out.height * out.width, to_row = plan.conv.stride[0] * plan.pitch;
  const int64_t to_column = plan.conv.stride[1];
  for (int64_t c = 0; c < in.channels; ++c)
    for (int64_t y = 0; y < in.height; ++y) {
      const T* from = x + c * in.to_channel + y * in.to_row;
      T* to = scratch.x + (c * plan.height + y + plan.conv.padding[0]) * plan.pitch + plan.conv.padding[1];
      if (in.to_column == 1)
        std::copy_n(from, in.width, to);
      else
        for (int64_t i = 0; i < in.width; ++i) to[i] = from[i * in.to_column];
    }
  double lanes[panel] = {};
  for (int64_t p = 0; p < plan.panels(panel); ++p) {
    const int64_t run = std::min(out.channels - p * panel, panel);
    T* right = scratch.g + p * pixels * panel;
    for (int64_t y = 0; y < out.height; ++y)
      pack_run(right + y * out.width * panel, g + p * panel * out.to_channel + y * out.to_row, out.width, run,
               out.to_column, out.to_channel);
    std::fill_n(scratch.gradient, plan.starts.size() * panel, T(0));
    for (int64_t y = 0; y < out.height; y += plan.block)
      for (int64_t r = 0; r < plan.rows; r += kRows<Bytes>)
        for (int64_t c = 0; c < run; c += 2 * vector) {
          T* to = scratch.gradient + r * panel + c;
          const T *left = scratch.x + y * to_row, *of_block = right + y * out.width * panel + c;
          const int64_t height = std::min(plan.block, out.height - y), *starts = &plan.starts[r];
          if (run - c > vector)
            add_products<T, Bytes, kRows<Bytes>>(to, left, starts, of_block, height, out.width, to_row, to_column);
          else
            add_products_of_one_vector<T, Bytes, kRows<Bytes>>(to, left, starts, of_block, height, out.width, to_row,
                                                               to_column);
        }
    for (int64_t r = 0; r < plan.rows; ++r)
      for (int64_t c = 0; c < panel; ++c) {
        const double value = scratch.gradient[r * panel + c];
        lanes[c] += value * value;
      }
    if (gradient != nullptr)
      for (int64_t begin = 0; begin < plan.rows; begin += kTransposed)
        for (int64_t c = 0; c < run; ++c)
          for (int64_t r = begin; r < std::min(begin + kTransposed, plan.rows); ++r)
            gradient[(p * panel + c) * plan.rows + r] = scratch.gradient[r * panel + c];
  }
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

#define PYENGM_SQNORM_OF(TARGET, BYTES, T)                                                              \
  TARGET double sqnorm_of(const Plan& plan, Scratch<T>& scratch, const T* x, const T* g, T* gradient) { \
    return sqnorm<T, BYTES>(plan, scratch, x, g, gradient);                                             \
  }
#define PYENGM_SQNORM(TARGET, BYTES) PYENGM_SQNORM_OF(TARGET, BYTES, float) PYENGM_SQNORM_OF(TARGET, BYTES, double)
PYENGM_PER_WIDTH(PYENGM_SQNORM)

}  // namespace

template <typename T>
void conv_direct_sqnorm(T* out, T* gradients, const T* x, const T* g, const Conv2d& conv) {
  const Plan plan(conv);
  const int64_t size = plan.rows * conv.g.channels;
#pragma omp parallel if (conv.x.n > 1)
  {
    Scratch<T> scratch(plan);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < conv.x.n; ++i)
      out[i] = T(sqnorm_of(plan, scratch, x + i * conv.x.to_example, g + i * conv.g.to_example,
                           gradients == nullptr ? nullptr : gradients + i * size));
  }
}

template void conv_direct_sqnorm(float*, float*, const float*, const float*, const Conv2d&);
template void conv_direct_sqnorm(double*, double*, const double*, const double*, const Conv2d&);

}  // namespace pyengm::cpu
