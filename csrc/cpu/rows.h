// Sums over the elements of one example, in float64.
#pragma once
#include <cstdint>

#include "../storage.h"
#include "simd.h"

namespace pyengm::cpu {

// sums (Terms::count) over d elements; x_adv and x are read only for Terms::offset. The order of the
// sum depends on the number of lanes, so that is the same for every instruction set: as many as the registers hold.
template <typename Terms, typename T>
PYENGM_INLINE void sum_row(double* sums, const T* __restrict grad, const T* __restrict x_adv, const T* __restrict x,
                           int64_t d) {
  constexpr int64_t kLanes = Terms::count == 1 ? 32 : 16;
  double lanes[Terms::count][kLanes] = {};
  const auto add = [&](int64_t i, int64_t l) __attribute__((always_inline)) {
    double lane[Terms::count];
    for (int k = 0; k < Terms::count; ++k) lane[k] = lanes[k][l];
    const double offset = Terms::offset ? double(widen(x_adv[i + l])) - double(widen(x[i + l])) : 0.0;
    Terms::add(lane, double(widen(grad[i + l])), offset);
    for (int k = 0; k < Terms::count; ++k) lanes[k][l] = lane[k];
  };
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) add(i, l);
  }
  for (int64_t l = 0; i + l < d; ++l) add(i, l);
  for (int k = 0; k < Terms::count; ++k) {
    sums[k] = 0.0;
    for (int64_t l = 0; l < kLanes; ++l) sums[k] += lanes[k][l];
  }
}

// Calls body(i) for n examples of d elements, on all OpenMP threads.
template <typename Body>
void parallel_rows(int64_t n, int64_t d, const Body& body) {
  parallel_chunks(n * d, d, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin / d; i < end / d; ++i) body(i);
  });
}

}  // namespace pyengm::cpu
