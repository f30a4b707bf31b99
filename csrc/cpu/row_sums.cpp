#include <algorithm>

#include "ops.h"
#include "simd.h"

namespace pyengm::cpu {
namespace {

constexpr int64_t kBlock = 256;  // elements summed in the type of the data; the sums of blocks are added in float64

template <typename T>
inline __attribute__((always_inline)) void sum_rows(T* __restrict sums, T* __restrict dots, const T* __restrict g,
                                                    const T* __restrict x, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r, g += columns, x += columns) {
    double sum = 0, dot = 0;
    for (int64_t begin = 0; begin < columns; begin += kBlock) {
      const int64_t end = std::min(begin + kBlock, columns);
      T block_sum = 0, block_dot = 0;
#pragma omp simd reduction(+ : block_sum, block_dot)
      for (int64_t i = begin; i < end; ++i) {
        block_sum += g[i];
        block_dot += g[i] * x[i];
      }
      sum += block_sum;
      dot += block_dot;
    }
    sums[r] = T(sum);
    dots[r] = T(dot);
  }
}

PYENGM_CLONES void sum_chunk(float* sums, float* dots, const float* g, const float* x, int64_t rows, int64_t columns) {
  if (columns == 16) return sum_rows(sums, dots, g, x, rows, 16);  // a constant length: the compiler unrolls the loops
  sum_rows(sums, dots, g, x, rows, columns);
}
PYENGM_CLONES void sum_chunk(double* sums, double* dots, const double* g, const double* x, int64_t rows,
                             int64_t columns) {
  sum_rows(sums, dots, g, x, rows, columns);
}

}  // namespace

template <typename T>
void row_sums(T* sums, T* dots, const T* g, const T* x, int64_t rows, int64_t columns) {
  parallel_chunks(rows * columns, columns, [&](int64_t begin, int64_t end) {
    const int64_t row = begin / columns;
    sum_chunk(sums + row, dots + row, g + begin, x + begin, end / columns - row, columns);
  });
}

template void row_sums(float*, float*, const float*, const float*, int64_t, int64_t);
template void row_sums(double*, double*, const double*, const double*, int64_t, int64_t);

}  // namespace pyengm::cpu
