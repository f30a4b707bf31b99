// A block writes some rows of one image in the order of memory: (c, y) of `width` values or, channels_last, y of
// `width` times `channels`. A team of threads writes a row, each thread four neighbours at a time.
#include <cmath>

#include "../crop_flip.h"
#include "teams.h"

namespace pyengm::cuda {
namespace {

constexpr int kPart = 8192;  // values that a block writes, approximately

struct Rows {
  uint32_t count, length;  // rows of an image; values in a row: both below 2^31, so that steps over them do not wrap
  int64_t part, parts;     // rows of a block; blocks of an image
};

__global__ void __launch_bounds__(kThreads)
    fill(int team_threads, float* __restrict__ out, const uint8_t* __restrict__ images,
         const int64_t* __restrict__ positions, const int64_t* __restrict__ rows, const int64_t* __restrict__ cols,
         const bool* __restrict__ flip, CropFlipShape shape, Rows all, bool wide) {
  const uint32_t channels = uint32_t(shape.channels), height = uint32_t(shape.height), width = uint32_t(shape.width);
  const uint32_t neighbours = shape.channels_last ? channels : 1, plane = height * width, team = uint32_t(team_threads);
  const uint32_t teams = kThreads / team, lane = threadIdx.x % team;
  for (int64_t unit = blockIdx.x; unit < shape.n * all.parts; unit += gridDim.x) {
    const int64_t i = quotient(unit, all.parts);
    const int64_t first = (unit - i * all.parts) * all.part;
    const uint32_t last = first + all.part < all.count ? uint32_t(first + all.part) : all.count;
    const Window window = window_of(i, positions, rows, cols, flip, shape);
    const uint8_t* image = images + (window.exists ? window.image : 0) * channels * int64_t(plane);
    float* result = out + i * channels * int64_t(plane);
    uint32_t row = uint32_t(first) + threadIdx.x / team, c = row / height, y = row % height;  // channels_last: c is 0
    for (; row < last; row += teams) {
      const int64_t from = y + window.down;
      const bool inside = window.exists && from >= 0 && from < height;
      const uint8_t* source = image + c * int64_t(plane) + (inside ? from * width : 0);
      float* to = result + row * int64_t(all.length);
      for (uint32_t e = 4 * lane; e < all.length; e += 4 * team) {
        uint32_t x = e / neighbours, k = e % neighbours;  // k: the channel, where channels_last
        float four[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int64_t at = (window.flip ? int64_t(width) - 1 - x : int64_t(x)) + window.right;
          const bool covered = inside && at >= 0 && at < width && x < width;
          four[j] = covered ? pixel_of(source[k * int64_t(plane) + at]) : window.exists ? 0.0f : NAN;
          if (++k == neighbours) {
            k = 0;
            ++x;
          }
        }
        if (wide)
          __stcg(reinterpret_cast<float4*>(to + e), make_float4(four[0], four[1], four[2], four[3]));
        else
          for (uint32_t j = 0; j < 4 && e + j < all.length; ++j) to[e + j] = four[j];
      }
      for (y += teams; y >= height; y -= height) ++c;
    }
  }
}

}  // namespace

void crop_flip(Launch at, float* out, const uint8_t* images, const int64_t* positions, const int64_t* rows,
               const int64_t* cols, const bool* flip, CropFlipShape shape) {
  Rows all;
  all.count = uint32_t(shape.channels_last ? shape.height : shape.height * shape.channels);
  all.length = uint32_t(shape.channels_last ? shape.width * shape.channels : shape.width);
  all.part = kPart / all.length > 0 ? kPart / all.length : 1;
  all.parts = (all.count + all.part - 1) / all.part;
  const bool wide = all.length % 4 == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0;
  const int team = team_size((all.length + 3) / 4, kThreads);
  launch_blocks(at, shape.n * all.parts, kThreads, "crop_flip", fill, team, out, images, positions, rows, cols, flip,
                shape, all, wide);
}

}  // namespace pyengm::cuda
