#include "rows.h"
#include "teams.h"

namespace pyengm::cuda {
namespace {

// Sums in float64, in an order that depends on the number of columns alone.
template <typename T>
__global__ void sum_rows(int team, T* __restrict__ sums, T* __restrict__ dots, const T* __restrict__ g,
                         const T* __restrict__ x, int64_t rows, int64_t columns) {
  constexpr int width = kVector<T>;
  const int lane = threadIdx.x % team, teams = kThreads / team;
  for (int64_t first = int64_t(blockIdx.x) * teams; first < rows; first += int64_t(gridDim.x) * teams) {
    const int64_t row = first + threadIdx.x / team;
    double sum = 0.0, dot = 0.0;
    if (row < rows) {
      const T *a = g + row * columns, *b = x + row * columns;
      const bool wide = aligned(a) && aligned(b);
      const auto add = [&](T own, T other) {
        sum += double(own);
        dot += double(own) * double(other);
      };
#pragma unroll 2
      for (int64_t i = width * lane; i + width <= columns; i += width * team) {
        const Vector<T> own = load_vector(a + i, wide), other = load_vector(b + i, wide);
#pragma unroll
        for (int j = 0; j < width; ++j) add(own.v[j], other.v[j]);
      }
      for (int64_t i = columns / width * width + lane; i < columns; i += team) add(a[i], b[i]);
    }
    for (int distance = team / 2; distance > 0; distance /= 2) {  // all lanes of a warp are here
      sum += __shfl_xor_sync(~0u, sum, distance);
      dot += __shfl_xor_sync(~0u, dot, distance);
    }
    if (lane == 0 && row < rows) {
      sums[row] = T(sum);
      dots[row] = T(dot);
    }
  }
}

}  // namespace

template <typename T>
void row_sums(Launch at, T* sums, T* dots, const T* g, const T* x, int64_t rows, int64_t columns) {
  const int team = team_size((columns + kVector<T> - 1) / kVector<T>, 32);
  launch_teams(at, rows, team, "row_sums", sum_rows<T>, sums, dots, g, x, rows, columns);
}

template void row_sums(Launch, float*, float*, const float*, const float*, int64_t, int64_t);
template void row_sums(Launch, double*, double*, const double*, const double*, int64_t, int64_t);

}  // namespace pyengm::cuda
