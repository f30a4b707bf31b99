// The pixel of a uint8 image that a cropped and flipped image holds, and its value in [0, 1]; for host and device.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace pyengm {

// n images (channels, height, width); out (n, C, H, W) or, channels_last, (n, H, W, C). Image i of out is
// image positions[i] of the `total` images, or image i where positions is null; one that does not exist is all nan.
struct CropFlipShape {
  int64_t n, total, channels, height, width, padding;
  bool channels_last;
};

// Pixel (y, x) of out is pixel (y + down, (flip ? width - 1 - x : x) + right) of the image, or 0 outside of it.
struct Window {
  int64_t image, down, right;
  bool flip, exists;
};

PYENGM_HD Window window_of(int64_t i, const int64_t* positions, const int64_t* rows, const int64_t* cols,
                           const bool* flip, const CropFlipShape& shape) {
  const int64_t image = positions != nullptr ? positions[i] : i;
  const bool exists = image >= 0 && image < shape.total;
  return {image, rows[i] - shape.padding, cols[i] - shape.padding, flip[i], exists};
}

// value / 255 rounded to nearest, for all 256 values: the first product is exact, and the binary digits of n / 255
// repeat after eight, so that no quotient is near the middle of two floats.
PYENGM_HD float pixel_of(uint8_t value) {
  constexpr float head = float(0x8080) * 0x1p-23f, tail = float(1.0 / 255.0 - double(head));
  return float(value) * head + float(value) * tail;
}

}  // namespace pyengm
