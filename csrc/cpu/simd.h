// SIMD and threads of CPU kernels: one clone of a kernel per vector width, chosen at load time, and OpenMP around it. A
// kernel is a plain loop over a contiguous range; the parallel driver calls it chunk by chunk, because the bodies that
// OpenMP outlines are not cloned.
#pragma once
#include <cstdint>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define PYENGM_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PYENGM_CLONES
#endif
#define PYENGM_INLINE inline __attribute__((always_inline))  // into each clone

namespace pyengm::cpu {

constexpr int64_t kChunk = 16384;  // elements: three float streams of a chunk fit the level-two cache

// Calls body(begin, end) over [0, size) in chunks that are multiples of unit, on all OpenMP threads.
template <typename Body>
void parallel_chunks(int64_t size, int64_t unit, const Body& body) {
  const int64_t step = kChunk / unit > 0 ? kChunk / unit * unit : unit;
  const int64_t chunks = (size + step - 1) / step;
#pragma omp parallel for schedule(static) if (chunks > 1)
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t begin = c * step;
    body(begin, begin + step < size ? begin + step : size);
  }
}

}  // namespace pyengm::cpu
