#include "teams.h"

namespace pyengm::cuda {
namespace {

constexpr int64_t kPart = 1024;  // Philox blocks, of four values each, that a team computes for one example

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

// wide: whether the four values of each block lie at a multiple of 16 bytes.
template <typename Kind>
__global__ void __launch_bounds__(kThreads) fill(int team, float* __restrict__ out, const int64_t* __restrict__ index,
                                                 int64_t n, int64_t count, int64_t parts, bool wide, Stream stream) {
  const int64_t blocks = (count + 3) / 4, teams = kThreads / team;
  for (int64_t unit = blockIdx.x * teams + threadIdx.x / team; unit < n * parts; unit += gridDim.x * teams) {
    const int64_t i = quotient(unit, parts), begin = (unit - i * parts) * kPart;
    const int64_t end = begin + kPart < blocks ? begin + kPart : blocks;
    const uint32_t example = uint32_t(index[i]);
    for (int64_t b = begin + threadIdx.x % team; b < end; b += team) {
      float four[4];
      Kind::fill(stream, example, uint32_t(b), four);
      float* to = out + i * count + 4 * b;
      if (wide)
        __stcg(reinterpret_cast<float4*>(to), make_float4(four[0], four[1], four[2], four[3]));  // never split by nvcc
      else
        for (int64_t j = 0; j < 4 && 4 * b + j < count; ++j) to[j] = four[j];
    }
  }
}

template <typename Kind>
void run(Launch at, const char* name, float* out, const int64_t* index, int64_t n, int64_t count, Stream stream) {
  const int64_t blocks = (count + 3) / 4, parts = (blocks + kPart - 1) / kPart;
  const bool wide = count % 4 == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0;
  launch_teams(at, n * parts, team_size(blocks, kThreads), name, fill<Kind>, out, index, n, count, parts, wide, stream);
}

}  // namespace

void philox_uniform(Launch at, float* out, const int64_t* index, int64_t n, int64_t count, Stream stream) {
  run<Uniform>(at, "philox_uniform", out, index, n, count, stream);
}

void philox_normal(Launch at, float* out, const int64_t* index, int64_t n, int64_t count, Stream stream) {
  run<Normal>(at, "philox_normal", out, index, n, count, stream);
}

}  // namespace pyengm::cuda
