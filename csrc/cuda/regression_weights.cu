// One block is enough: a batch has few examples, and the weights need the sums over all of them.
#include "../regression_weights.h"
#include "launch.h"

namespace pyengm::cuda {
namespace {

// The sums over the whole batch, in every thread. The order of the additions is fixed, and so are the bits.
template <typename T>
__device__ LineSums sum(const T* x, const T* y, int64_t n) {
  __shared__ LineSums parts[kThreads];
  const int thread = threadIdx.x;
  LineSums own{};
  for (int64_t i = thread; i < n; i += kThreads) add_example(own, x[i], y[i]);
  parts[thread] = own;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) {
      for (int k = 0; k < kLineSums; ++k) parts[thread].v[k] += parts[thread + half].v[k];
    }
  }
  __syncthreads();  // thread 0 has added the last part
  return parts[0];
}

template <typename T>
__global__ void statistics(double* out, const T* x, const T* y, int64_t n) {
  const LineSums sums = sum(x, y, n);
  if (threadIdx.x == 0) {
    for (int k = 0; k < kLineSums; ++k) out[k] = sums.v[k];
  }
}

template <typename T>
__global__ void weigh(T* weights, double* line, const T* x, const T* y, const double* old, int64_t n, double alpha,
                      double keep) {
  __shared__ Line shared;
  Line now{old[0], old[1]};
  if (y != nullptr) {
    const LineSums sums = sum(x, y, n);
    if (threadIdx.x == 0) shared = fit_line(sums, now, keep);
    __syncthreads();
    now = shared;
  }
  if (threadIdx.x == 0) {
    line[0] = now.intercept;
    line[1] = now.slope;
  }
  for (int64_t i = threadIdx.x; i < n; i += kThreads) weights[i] = line_weight(x[i], now, alpha);
}

}  // namespace

template <typename T>
void regression_statistics(Launch at, double* out, const T* x, const T* y, int64_t n) {
  launch(at, kThreads, "regression_statistics", statistics<T>, out, x, y, n);
}

template <typename T>
void regression_weights(Launch at, T* weights, double* line, const T* x, const T* y, const double* old, int64_t n,
                        double alpha, double keep) {
  launch(at, kThreads, "regression_weights", weigh<T>, weights, line, x, y, old, n, alpha, keep);
}

template void regression_statistics(Launch, double*, const float*, const float*, int64_t);
template void regression_statistics(Launch, double*, const double*, const double*, int64_t);
template void regression_weights(Launch, float*, double*, const float*, const float*, const double*, int64_t, double,
                                 double);
template void regression_weights(Launch, double*, double*, const double*, const double*, const double*, int64_t, double,
                                 double);

}  // namespace pyengm::cuda
