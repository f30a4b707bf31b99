#include "../pgd_l2_step.h"
#include "rows.h"

namespace pyengm::cuda {
namespace {

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    step_rows(T* __restrict__ x_adv, const T* __restrict__ grad, const T* __restrict__ x, int64_t n, int64_t d,
              bool wide, double step, double eps, double lo, double hi, const T* __restrict__ steps,
              const bool* __restrict__ mask) {
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    if (mask != nullptr && !mask[i]) continue;
    T* a = x_adv + i * d;
    const T *g = grad + i * d, *c = x + i * d;
    double sums[L2Terms::count];
    sum_row<L2Terms>(sums, g, a, c, d, wide);
    const L2Move move = l2_move(sums, steps != nullptr ? double(steps[i]) : step, eps);
    update_row(a, g, c, d, wide,
               [=](T from, T gradient, T center) { return pgd_l2_step(from, gradient, center, move, lo, hi); });
  }
}

}  // namespace

template <typename T>
void pgd_l2_step_(Launch at, T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, double step, double eps,
                  double lo, double hi, const T* steps, const bool* mask) {
  launch_rows(at, n, "pgd_l2_step_", step_rows<T>, x_adv, grad, x, n, d, fits_quads(d, x_adv, grad, x), step, eps, lo,
              hi, steps, mask);
}

template void pgd_l2_step_(Launch, float*, const float*, const float*, int64_t, int64_t, double, double, double, double,
                           const float*, const bool*);
template void pgd_l2_step_(Launch, double*, const double*, const double*, int64_t, int64_t, double, double, double,
                           double, const double*, const bool*);

}  // namespace pyengm::cuda
