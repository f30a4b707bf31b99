// Per example the squared norm of a convolution's weight gradient sum_t g_t a_t^T, a_t the patch under output pixel t:
//   sum_{t,s} <g_t, g_s> <a_t, a_s>,   <a_t, a_s> = sum_d <x_{p(t)+d}, x_{p(s)+d}>   over the kernel's offsets d.
// The products of pixels do not depend on the kernel; their sums over d are a box filter, along x and then along y.
//
// An axis of stride s is split into s phases, the pixels of equal remainder. Within a phase the kernel covers, for
// output pixel t, the input pixels t + shift: the stride is 1 there. The index of a pixel is y * pitch + x on every
// grid, so that a shift is one offset into a row of products. Only pairs of image rows y <= y' are formed, as products
// are symmetric. Rows of filtered products are kept in a rolling window as high as the kernel: memory never grows with
// the square of the number of pixels.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "gemm_tile.h"
#include "ops.h"

namespace pyengm::cpu {
namespace {

struct Phase {
  int64_t start, size, first, last;  // input pixels start + i * stride, i < size; the least and the greatest shift
  std::vector<int64_t> shifts;
  int64_t window() const { return last - first + 1; }
};

std::vector<Phase> phases_of(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t padding,
                             int64_t dilation) {
  std::vector<Phase> phases;
  for (int64_t start = 0; start < std::min(stride, in); ++start) {
    Phase phase{start, 0, 0, 0, {}};
    for (int64_t k = 0; k < kernel; ++k)
      if ((k * dilation - padding - start) % stride == 0)
        phase.shifts.push_back((k * dilation - padding - start) / stride);
    if (phase.shifts.empty()) continue;
    phase.first = phase.shifts.front();
    phase.last = phase.shifts.back();
    phase.size = std::min((in - start + stride - 1) / stride, out + phase.last);  // pixels beyond belong to no output
    if (phase.size > 0) phases.push_back(std::move(phase));
  }
  return phases;
}

// One column of the kernel. keep: all bits set where the index of a pixel plus shift is still in the same image row.
template <typename T>
struct Column {
  size_t phase;
  int64_t shift;
  std::vector<T> keep;
};

// Sizes and tables that all examples share. A row of products is margin, then one value per pixel, then padding.
template <typename T>
struct Plan {
  const Conv2d& conv;
  std::vector<Phase> ys, xs;
  std::vector<Column<T>> columns;
  int64_t pitch, panels, margin, length;

  explicit Plan(const Conv2d& c)
      : conv(c),
        ys(phases_of(c.x.height, c.g.height, c.kernel[0], c.stride[0], c.padding[0], c.dilation[0])),
        xs(phases_of(c.x.width, c.g.width, c.kernel[1], c.stride[1], c.padding[1], c.dilation[1])) {
    int64_t width = c.g.width, height = c.g.height, reach = 0;
    for (const Phase& p : xs) {
      width = std::max(width, p.size);
      reach = std::max({reach, -p.first, p.last});
    }
    for (const Phase& p : ys) height = std::max({height, p.size, c.g.height + p.last});
    pitch = ceil_to(width, 4);
    panels = panels_of(c.g.height);
    margin = ceil_to(reach, kPanel<T>) + kPanel<T>;
    length = margin + ceil_to(height * pitch, kPanel<T>) + margin;
    for (size_t phase = 0; phase < xs.size(); ++phase)
      for (const int64_t shift : xs[phase].shifts) {
        columns.push_back({phase, shift, std::vector<T>(length)});
        for (int64_t s = 0; s < length; ++s)
          if (const int64_t x = s % pitch + shift; x >= 0 && x < pitch)
            std::memset(&columns.back().keep[s], 0xff, sizeof(T));
      }
  }

  int64_t panels_of(int64_t rows) const { return ceil_to(rows * pitch, kPanel<T>) / kPanel<T>; }
};

// The memory of one thread. It starts as zeros, and padding is never written.
template <typename T>
class Scratch {
 public:
  std::vector<T*> x, products, window;  // x by phase of y and x, products by phase of x, window by phase of y
  T *g, *tile;
  std::vector<std::pair<const T*, const T*>> sources;

  explicit Scratch(const Plan<T>& plan) {
    layout(plan, nullptr);
    layout(plan, memory_.allocate<T>(size_));
  }

 private:
  AlignedZeros memory_;
  int64_t size_ = 0;

  void layout(const Plan<T>& plan, T* memory) {
    size_ = 0;
    const auto take = [&](int64_t count) { return memory + std::exchange(size_, size_ + ceil_to(count, kPanel<T>)); };
    x.clear(), products.clear(), window.clear();
    for (const Phase& y : plan.ys)
      for (size_t i = 0; i < plan.xs.size(); ++i)
        x.push_back(take(plan.panels_of(y.size) * kPanel<T> * plan.conv.x.channels));
    for (size_t i = 0; i < plan.xs.size(); ++i) products.push_back(take(plan.pitch * plan.length));
    for (const Phase& y : plan.ys) window.push_back(take(y.window() * plan.pitch * plan.length));
    g = take(plan.panels * kPanel<T> * plan.conv.g.channels);
    tile = take(kRows<64> * kPanel<T>);
  }
};

template <typename T>
PYENGM_INLINE const T* left_side(const T* packed, int64_t depth, int64_t t) {
  return packed + t / kPanel<T> * depth * kPanel<T> + t % kPanel<T>;
}

template <typename T>
PYENGM_INLINE T* window_row(const Plan<T>& plan, const Scratch<T>& scratch, size_t phase, int64_t y) {
  return scratch.window[phase] + y % plan.ys[phase].window() * plan.pitch * plan.length + plan.margin;
}

// Products of image row y of one phase of y with all rows from y on, filtered along x, into the window.
template <typename T, int64_t Bytes, int64_t Rows>
PYENGM_INLINE void filter_row(const Plan<T>& plan, Scratch<T>& scratch, size_t phase, int64_t y) {
  using V = typename Simd<T, Bytes>::Vector;
  using Mask = typename Simd<T, Bytes>::Mask;
  const int64_t depth = plan.conv.x.channels, first = y * plan.pitch, end = plan.ys[phase].size * plan.pitch;
  for (size_t i = 0; i < plan.xs.size(); ++i) {
    const T* packed = scratch.x[phase * plan.xs.size() + i];
    for (int64_t p = first / kPanel<T>; p < plan.panels_of(plan.ys[phase].size); ++p)
      for (int64_t r = 0; r < plan.xs[i].size; r += Rows)
        multiply_panel<T, Bytes, Rows>(depth, left_side(packed, depth, first + r), packed + p * depth * kPanel<T>,
                                       scratch.products[i] + r * plan.length + plan.margin + p * kPanel<T>,
                                       plan.length);
  }
  for (int64_t x = 0; x < plan.conv.g.width; ++x) {
    auto& sources = scratch.sources;
    sources.clear();
    for (const Column<T>& column : plan.columns)
      if (const int64_t from = x + column.shift; from >= 0 && from < plan.xs[column.phase].size)
        sources.emplace_back(scratch.products[column.phase] + from * plan.length + plan.margin + first + column.shift,
                             column.keep.data());
    T* out = window_row(plan, scratch, phase, y) + x * plan.length + first;
    std::fill_n(out - kPanel<T>, kPanel<T>, T(0));
    for (int64_t s = 0; s < end - first; s += Simd<T, Bytes>::lanes) {
      V sum = {};
      for (const auto& [source, keep] : sources) sum += (V)(load<Mask>(source + s) & load<Mask>(keep + s));
      store(out + s, sum);
    }
    std::fill(out + end - first, out - first - plan.margin + plan.length, T(0));
    for (int64_t s = 0; s < plan.pitch; ++s) out[s] *= T(0.5);  // pairs within a row occur twice, all others once
  }
}

// Adds the products of g for output row y with all rows from y on, times the filtered products of x, to lanes.
template <typename T, int64_t Bytes, int64_t Rows>
PYENGM_INLINE void dot_row(const Plan<T>& plan, Scratch<T>& scratch, int64_t y, double* lanes) {
  using V = typename Simd<T, Bytes>::Vector;
  constexpr int64_t step = Simd<T, Bytes>::lanes;
  const int64_t depth = plan.conv.g.channels, first = y * plan.pitch;
  auto& sources = scratch.sources;
  sources.clear();
  for (size_t phase = 0; phase < plan.ys.size(); ++phase)
    for (const int64_t shift : plan.ys[phase].shifts)
      if (const int64_t from = y + shift; from >= 0 && from < plan.ys[phase].size)
        sources.emplace_back(window_row(plan, scratch, phase, from) + shift * plan.pitch, nullptr);
  for (int64_t p = first / kPanel<T>; p < plan.panels; ++p)
    for (int64_t r = 0; r < plan.conv.g.width; r += Rows) {
      multiply_panel<T, Bytes, Rows>(depth, left_side(scratch.g, depth, first + r), scratch.g + p * depth * kPanel<T>,
                                     scratch.tile, kPanel<T>);
      V sum = {};
      for (int64_t i = 0; i < Rows; ++i)
        for (int64_t c = 0; c < kPanel<T>; c += step) {
          V box = {};
          for (const auto& source : sources) box += load<V>(source.first + (r + i) * plan.length + p * kPanel<T> + c);
          sum += box * load<V>(scratch.tile + i * kPanel<T> + c);
        }
      for (int64_t c = 0; c < step; ++c) lanes[c] += sum[c];
    }
}

template <typename T, int64_t Bytes, int64_t Rows>
PYENGM_INLINE double sqnorm(const Plan<T>& plan, Scratch<T>& scratch, const T* x, const T* g) {
  const Images &in = plan.conv.x, &out = plan.conv.g;
  const auto [stride_y, stride_x] = plan.conv.stride;
  size_t grid = 0;
  for (const Phase& py : plan.ys)
    for (const Phase& px : plan.xs)
      pack_pixels(scratch.x[grid++], x + py.start * in.to_row + px.start * in.to_column, in.channels, py.size, px.size,
                  plan.pitch, in.to_channel, in.to_row * stride_y, in.to_column * stride_x);
  pack_pixels(scratch.g, g, out.channels, out.height, out.width, plan.pitch, out.to_channel, out.to_row, out.to_column);

  double lanes[Simd<T, Bytes>::lanes] = {};
  for (int64_t y = 0; y < out.height; ++y) {
    for (size_t phase = 0; phase < plan.ys.size(); ++phase) {
      const Phase& p = plan.ys[phase];
      const int64_t done = y == 0 ? std::max<int64_t>(p.first, 0) : std::max<int64_t>(y + p.last, 0);
      for (int64_t row = done; row <= y + p.last && row < p.size; ++row)
        filter_row<T, Bytes, Rows>(plan, scratch, phase, row);
    }
    dot_row<T, Bytes, Rows>(plan, scratch, y, lanes);
  }
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return std::max(2 * sum, 0.0);  // rounding may make a vanishing norm negative; nan is kept
}

#define PYENGM_SQNORM(TARGET, BYTES)                                                                              \
  TARGET double sqnorm_of(const Plan<float>& plan, Scratch<float>& scratch, const float* x, const float* g) {     \
    return plan.pitch % kRows<BYTES> ? sqnorm<float, BYTES, 4>(plan, scratch, x, g)                               \
                                     : sqnorm<float, BYTES, kRows<BYTES>>(plan, scratch, x, g);                   \
  }                                                                                                               \
  TARGET double sqnorm_of(const Plan<double>& plan, Scratch<double>& scratch, const double* x, const double* g) { \
    return sqnorm<double, BYTES, 4>(plan, scratch, x, g);                                                         \
  }
PYENGM_PER_WIDTH(PYENGM_SQNORM)

}  // namespace

template <typename T>
void conv_gram_sqnorm(T* out, const T* x, const T* g, const Conv2d& conv) {
  const Plan<T> plan(conv);
#pragma omp parallel if (conv.x.n > 1)
  {
    Scratch<T> scratch(plan);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < conv.x.n; ++i)
      out[i] = T(sqnorm_of(plan, scratch, x + i * conv.x.to_example, g + i * conv.g.to_example));
  }
}

template void conv_gram_sqnorm(float*, const float*, const float*, const Conv2d&);
template void conv_gram_sqnorm(double*, const double*, const double*, const Conv2d&);

}  // namespace pyengm::cpu
