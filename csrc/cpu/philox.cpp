#include "ops.h"
#include "simd.h"

namespace pyengm::cpu {
namespace {

constexpr int64_t kBlocks = 64;  // blocks whose words are computed together, so that the ten rounds vectorise

using Fill = void (*)(float* out, uint32_t example, uint32_t block, int64_t count, Stream stream);

// Values 4*block to 4*block+count-1 of one example, count <= 4*kBlocks.
PYENGM_CLONES void fill_uniform(float* out, uint32_t example, uint32_t block, int64_t count, Stream stream) {
  float lanes[4][kBlocks];
  const int64_t blocks = (count + 3) / 4;
#pragma omp simd
  for (int64_t b = 0; b < blocks; ++b) {
    const Words r = block_words(stream, example, block + uint32_t(b));
    for (int i = 0; i < 4; ++i) lanes[i][b] = uniform_of(r.w[i]);
  }
  for (int64_t j = 0; j < count; ++j) out[j] = lanes[j % 4][j / 4];
}

void fill_normal(float* out, uint32_t example, uint32_t block, int64_t count, Stream stream) {
  for (int64_t j = 0; j < count; j += 4) {
    float four[4];
    block_normal(stream, example, block + uint32_t(j / 4), four);
    for (int64_t i = 0; i < 4 && j + i < count; ++i) out[j + i] = four[i];
  }
}

void fill_all(float* out, const int64_t* index, int64_t n, int64_t count, Stream stream, Fill fill) {
  parallel_chunks(n * count, count, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin / count; i < end / count; ++i)
      for (int64_t j = 0; j < count; j += 4 * kBlocks) {
        const int64_t part = count - j < 4 * kBlocks ? count - j : 4 * kBlocks;
        fill(out + i * count + j, uint32_t(index[i]), uint32_t(j / 4), part, stream);
      }
  });
}

}  // namespace

void philox_uniform(float* out, const int64_t* index, int64_t n, int64_t count, Stream stream) {
  fill_all(out, index, n, count, stream, fill_uniform);
}

void philox_normal(float* out, const int64_t* index, int64_t n, int64_t count, Stream stream) {
  fill_all(out, index, n, count, stream, fill_normal);
}

}  // namespace pyengm::cpu
