#include "rows.h"
#include "teams.h"

namespace pyengm::cuda {
namespace {

struct RowTerms {  // sum of g, <g, x>
  static constexpr int count = 2;
  template <typename Sum, typename G>
  static __device__ __forceinline__ void add(Sum* sums, G g, G x) {
    using pyengm::add_product;  // besides those of pairs
    add_product(sums[0], g, G(1));
    add_product(sums[1], g, x);
  }
};

// Sums in float64, or in pairs of float32 (rows.h), in an order that depends on the number of columns alone.
template <typename T>
__global__ void sum_rows(int team, T* __restrict__ out, T* __restrict__ dots, const T* __restrict__ g,
                         const T* __restrict__ x, int64_t rows, int64_t columns) {
  constexpr int width = kVector<T>;
  const int lane = threadIdx.x % team, teams = kThreads / team;
  for (int64_t first = int64_t(blockIdx.x) * teams; first < rows; first += int64_t(gridDim.x) * teams) {
    const int64_t row = first + threadIdx.x / team;
    double sums[RowTerms::count] = {};
    if (row < rows) {
      const T *a = g + row * columns, *b = x + row * columns;
      const bool wide = aligned(a) && aligned(b);
      PairSum pairs[RowTerms::count];
#pragma unroll 2
      for (int64_t i = width * lane; i + width <= columns; i += width * team) {
        const Vector<T> own = load_vector(a + i, wide), other = load_vector(b + i, wide);
        const auto in_double = [&] {
#pragma unroll
          for (int j = 0; j < width; ++j) RowTerms::add(sums, double(own.v[j]), double(other.v[j]));
        };
        if constexpr (std::is_same_v<T, double>)
          in_double();
        else
          add_in_pairs<RowTerms>(sums, pairs, own.v, other.v, in_double);
      }
#pragma unroll
      for (int k = 0; k < RowTerms::count; ++k) sums[k] += double(pairs[k].low);
      for (int64_t i = columns / width * width + lane; i < columns; i += team)
        RowTerms::add(sums, double(a[i]), double(b[i]));
    }
    for (int distance = team / 2; distance > 0; distance /= 2) {  // all lanes of a warp are here
      sums[0] += __shfl_xor_sync(~0u, sums[0], distance);
      sums[1] += __shfl_xor_sync(~0u, sums[1], distance);
    }
    if (lane == 0 && row < rows) {
      out[row] = T(sums[0]);
      dots[row] = T(sums[1]);
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
