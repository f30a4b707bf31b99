#include "../row_norms.h"
#include "rows.h"

namespace pyengm::cuda {
namespace {

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    norms(T* __restrict__ out, const T* __restrict__ t, int64_t n, int64_t d, bool wide) {
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    const T* row = t + i * d;
    double square;
    sum_row<SquareTerms>(&square, row, row, row, d, wide);
    if (threadIdx.x == 0) out[i] = T(sqrt(square));
  }
}

}  // namespace

template <typename T>
void row_norms(Launch at, T* out, const T* t, int64_t n, int64_t d) {
  launch_rows(at, n, "row_norms", norms<T>, out, t, n, d, fits_quads(d, t, t, t));
}

template void row_norms(Launch, float*, const float*, int64_t, int64_t);
template void row_norms(Launch, double*, const double*, int64_t, int64_t);

}  // namespace pyengm::cuda
