#include "../atas_step.h"
#include "../pgd_linf_step.h"
#include "../row_norms.h"
#include "rows.h"

namespace pyengm::cuda {
namespace {

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    step_rows(T* __restrict__ sizes, T* __restrict__ x_adv, const T* __restrict__ grad, const T* __restrict__ x,
              T* __restrict__ v, int64_t n, int64_t d, bool wide, AtasRule rule, T eps, T lo, T hi) {
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    T* a = x_adv + i * d;
    const T *g = grad + i * d, *c = x + i * d;
    const T old = v[i];  // before the sum, which waits for all threads: thread 0 writes it after
    double square;
    sum_row<SquareTerms>(&square, g, a, c, d, wide);
    const AtasStep<T> step = atas_step(old, square, rule);
    if (threadIdx.x == 0) {
      sizes[i] = step.size;
      v[i] = step.v;
    }
    if (step.moves)
      update_row(a, g, c, d, wide, [=](T from, T gradient, T center) {
        return pgd_linf_step(from, gradient, center, step.size, eps, lo, hi);
      });
  }
}

}  // namespace

template <typename T>
void atas_step_(Launch at, T* sizes, T* x_adv, const T* grad, const T* x, T* v, int64_t n, int64_t d, AtasRule rule,
                double eps, double lo, double hi) {
  launch_rows(at, n, "atas_step_", step_rows<T>, sizes, x_adv, grad, x, v, n, d, fits_quads(d, x_adv, grad, x), rule,
              T(eps), T(lo), T(hi));
}

template void atas_step_(Launch, float*, float*, const float*, const float*, float*, int64_t, int64_t, AtasRule, double,
                         double, double);
template void atas_step_(Launch, double*, double*, const double*, const double*, double*, int64_t, int64_t, AtasRule,
                         double, double, double);

}  // namespace pyengm::cuda
