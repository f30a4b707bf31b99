#include "../crop_flip.h"

#include <algorithm>
#include <cmath>

#include "ops.h"
#include "simd.h"

namespace pyengm::cpu {
namespace {

// Columns [begin, end) of an output row are pixels of `from`, the others 0. Stride: of neighbours in out; 0: variable.
template <int64_t Stride>
PYENGM_INLINE void fill_row(float* __restrict out, const uint8_t* __restrict from, int64_t begin, int64_t end,
                            int64_t width, bool flip, int64_t stride = Stride) {
  if (Stride != 0) stride = Stride;
  for (int64_t x = 0; x < begin; ++x) out[x * stride] = 0.0f;
  if (flip) {
#pragma omp simd
    for (int64_t x = begin; x < end; ++x) out[x * stride] = pixel_of(from[-x]);
  } else {
#pragma omp simd
    for (int64_t x = begin; x < end; ++x) out[x * stride] = pixel_of(from[x]);
  }
  for (int64_t x = end; x < width; ++x) out[x * stride] = 0.0f;
}

template <int64_t Stride>
PYENGM_INLINE void fill_image(float* out, const uint8_t* image, Window window, const CropFlipShape& shape) {
  const auto [n, total, channels, height, width, padding, channels_last] = shape;
  const int64_t stride = channels_last ? channels : 1;
  // Pixel x is pixel right + x of the image, or right + width - 1 - x when flipped; it is inside for x in [begin, end).
  const int64_t first = window.flip ? window.right + width - 1 : window.right;
  const int64_t begin = std::clamp<int64_t>(window.flip ? first - width + 1 : -first, 0, width);
  const int64_t end = std::clamp<int64_t>(window.flip ? first + 1 : width - first, begin, width);
  for (int64_t y = 0; y < height; ++y) {
    const int64_t row = y + window.down;
    const bool inside = row >= 0 && row < height;
    for (int64_t c = 0; c < channels; ++c) {
      float* to = channels_last ? out + y * width * channels + c : out + (c * height + y) * width;
      const uint8_t* from = image + (c * height + (inside ? row : 0)) * width + first;
      fill_row<Stride>(to, from, inside ? begin : width, inside ? end : width, width, window.flip, stride);
    }
  }
}

PYENGM_CLONES void fill(float* out, const uint8_t* image, Window window, const CropFlipShape& shape) {
  if (!shape.channels_last || shape.channels == 1) return fill_image<1>(out, image, window, shape);
  if (shape.channels == 3)
    return fill_image<3>(out, image, window, shape);  // a constant stride: the compiler uses shuffles
  fill_image<0>(out, image, window, shape);
}

}  // namespace

void crop_flip(float* out, const uint8_t* images, const int64_t* positions, const int64_t* rows, const int64_t* cols,
               const bool* flip, CropFlipShape shape) {
  const int64_t d = shape.channels * shape.height * shape.width;
  parallel_chunks(shape.n * d, d, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin / d; i < end / d; ++i) {
      const Window window = window_of(i, positions, rows, cols, flip, shape);
      if (window.exists)
        fill(out + i * d, images + window.image * d, window, shape);
      else
        std::fill_n(out + i * d, d, NAN);
    }
  });
}

}  // namespace pyengm::cpu
