#include "../fosc.h"
#include "../pgd_linf_step.h"
#include "rows.h"

namespace pyengm::cuda {
namespace {

template <bool L2, typename T>
__device__ T fosc_of_row(const T* x_adv, const T* grad, const T* x, int64_t d, bool wide, double eps) {
  double sums[FoscTerms<L2>::count];
  sum_row<FoscTerms<L2>>(sums, grad, x_adv, x, d, wide);
  return T(fosc_of<L2>(sums, eps));
}

template <bool L2, typename T>
__global__ void __launch_bounds__(kRowThreads)
    conditions(T* __restrict__ out, const T* __restrict__ x_adv, const T* __restrict__ grad, const T* __restrict__ x,
               int64_t n, int64_t d, bool wide, double eps) {
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    const T condition = fosc_of_row<L2>(x_adv + i * d, grad + i * d, x + i * d, d, wide, eps);
    if (threadIdx.x == 0) out[i] = condition;
  }
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    step_rows(T* __restrict__ out, T* __restrict__ x_adv, const T* __restrict__ grad, const T* __restrict__ x,
              bool* __restrict__ active, int64_t n, int64_t d, bool wide, T step, double eps, T threshold, T lo, T hi) {
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    T* a = x_adv + i * d;
    const T *g = grad + i * d, *c = x + i * d;
    const bool was_active = active[i];  // before the sum, which waits for all threads: thread 0 writes it after
    const T condition = fosc_of_row<false>(a, g, c, d, wide, eps);
    const bool moves = was_active && !(condition <= threshold);
    if (threadIdx.x == 0) {
      out[i] = condition;
      active[i] = moves;
    }
    if (moves)
      update_row(a, g, c, d, wide, [=](T from, T gradient, T center) {
        return pgd_linf_step(from, gradient, center, step, T(eps), lo, hi);
      });
  }
}

}  // namespace

template <typename T>
void fosc(Launch at, T* out, const T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, double eps, bool l2) {
  launch_rows(at, n, "fosc", l2 ? conditions<true, T> : conditions<false, T>, out, x_adv, grad, x, n, d,
              fits_quads(d, x_adv, grad, x), eps);
}

template <typename T>
void fosc_step_(Launch at, T* out, T* x_adv, const T* grad, const T* x, bool* active, int64_t n, int64_t d, double step,
                double eps, double threshold, double lo, double hi) {
  launch_rows(at, n, "fosc_step_", step_rows<T>, out, x_adv, grad, x, active, n, d, fits_quads(d, x_adv, grad, x),
              T(step), eps, T(threshold), T(lo), T(hi));
}

template void fosc(Launch, float*, const float*, const float*, const float*, int64_t, int64_t, double, bool);
template void fosc(Launch, double*, const double*, const double*, const double*, int64_t, int64_t, double, bool);
template void fosc_step_(Launch, float*, float*, const float*, const float*, bool*, int64_t, int64_t, double, double,
                         double, double, double);
template void fosc_step_(Launch, double*, double*, const double*, const double*, bool*, int64_t, int64_t, double,
                         double, double, double, double);

}  // namespace pyengm::cuda
