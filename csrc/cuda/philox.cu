#include "launch.h"

namespace pyengm::cuda {
namespace {

struct Uniform {
  static __device__ void fill(Stream s, uint32_t example, uint32_t block, float out[4]) {
    block_uniform(s, example, block, out);
  }
};
struct Normal {
  static __device__ void fill(Stream s, uint32_t example, uint32_t block, float out[4]) {
    block_normal(s, example, block, out);
  }
};

// One thread makes the four numbers of one Philox block of one example.
template <typename Kind>
__global__ void fill(float* __restrict__ out, const int64_t* __restrict__ index, int64_t n, int64_t count,
                     int64_t blocks, Stream stream) {
  for (int64_t t = first_item(); t < n * blocks; t += grid_stride()) {
    const int64_t i = t / blocks, b = t % blocks;
    float four[4];
    Kind::fill(stream, uint32_t(index[i]), uint32_t(b), four);
    for (int64_t j = 0; j < 4 && 4 * b + j < count; ++j) out[i * count + 4 * b + j] = four[j];
  }
}

template <typename Kind>
void run(Launch at, const char* name, float* out, const int64_t* index, int64_t n, int64_t count, Stream s) {
  const int64_t blocks = (count + 3) / 4;
  launch(at, n * blocks, name, fill<Kind>, out, index, n, count, blocks, s);
}

}  // namespace

void philox_uniform(Launch at, float* out, const int64_t* index, int64_t n, int64_t count, Stream stream) {
  run<Uniform>(at, "philox_uniform", out, index, n, count, stream);
}

void philox_normal(Launch at, float* out, const int64_t* index, int64_t n, int64_t count, Stream stream) {
  run<Normal>(at, "philox_normal", out, index, n, count, stream);
}

}  // namespace pyengm::cuda
