#include "../pgd_l2_step.h"

#include "ops.h"
#include "rows.h"

namespace pyengm::cpu {
namespace {

template <typename T>
PYENGM_INLINE void step(T* __restrict x_adv, const T* __restrict grad, const T* __restrict x, int64_t d, double size,
                        double eps, double lo, double hi) {
  double sums[L2Terms::count];
  sum_row<L2Terms>(sums, grad, x_adv, x, d);
  const L2Move move = l2_move(sums, size, eps);
#pragma omp simd
  for (int64_t i = 0; i < d; ++i) x_adv[i] = pgd_l2_step(x_adv[i], grad[i], x[i], move, lo, hi);
}

PYENGM_CLONES void step_row(float* x_adv, const float* grad, const float* x, int64_t d, double size, double eps,
                            double lo, double hi) {
  step(x_adv, grad, x, d, size, eps, lo, hi);
}
PYENGM_CLONES void step_row(double* x_adv, const double* grad, const double* x, int64_t d, double size, double eps,
                            double lo, double hi) {
  step(x_adv, grad, x, d, size, eps, lo, hi);
}

}  // namespace

template <typename T>
void pgd_l2_step_(T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, double step, double eps, double lo,
                  double hi, const T* steps, const bool* mask) {
  parallel_rows(n, d, [&](int64_t i) {
    if (mask != nullptr && !mask[i]) return;
    step_row(x_adv + i * d, grad + i * d, x + i * d, d, steps != nullptr ? steps[i] : step, eps, lo, hi);
  });
}

template void pgd_l2_step_(float*, const float*, const float*, int64_t, int64_t, double, double, double, double,
                           const float*, const bool*);
template void pgd_l2_step_(double*, const double*, const double*, int64_t, int64_t, double, double, double, double,
                           const double*, const bool*);

}  // namespace pyengm::cpu
