#include "../regression_weights.h"

#include "ops.h"
#include "simd.h"

namespace pyengm::cpu {

namespace {

PYENGM_CLONES void weigh(float* __restrict out, const float* __restrict x, int64_t n, Line line, double alpha) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = line_weight(x[i], line, alpha);
}
PYENGM_CLONES void weigh(double* __restrict out, const double* __restrict x, int64_t n, Line line, double alpha) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = line_weight(x[i], line, alpha);
}

template <typename T>
LineSums sum(const T* x, const T* y, int64_t n) {
  LineSums sums{};  // one thread in one order: a batch is small, and the bits never change
  for (int64_t i = 0; i < n; ++i) add_example(sums, x[i], y[i]);
  return sums;
}

}  // namespace

template <typename T>
void regression_statistics(double* out, const T* x, const T* y, int64_t n) {
  const LineSums sums = sum(x, y, n);
  for (int k = 0; k < kLineSums; ++k) out[k] = sums.v[k];
}

template <typename T>
void regression_weights(T* weights, double* line, const T* x, const T* y, const double* old, int64_t n, double alpha,
                        double keep) {
  Line now{old[0], old[1]};
  if (y != nullptr) now = fit_line(sum(x, y, n), now, keep);
  line[0] = now.intercept;
  line[1] = now.slope;
  weigh(weights, x, n, now, alpha);
}

template void regression_statistics(double*, const float*, const float*, int64_t);
template void regression_statistics(double*, const double*, const double*, int64_t);
template void regression_weights(float*, double*, const float*, const float*, const double*, int64_t, double, double);
template void regression_weights(double*, double*, const double*, const double*, const double*, int64_t, double,
                                 double);

}  // namespace pyengm::cpu
