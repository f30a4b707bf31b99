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
  for (int64_t i = 0; i < d; ++i)
    x_adv[i] = narrow<T>(pgd_l2_step(widen(x_adv[i]), widen(grad[i]), widen(x[i]), move, lo, hi));
}

#define PYENGM_FOR(T)                                                                                             \
  PYENGM_CLONES void step_row(T* x_adv, const T* grad, const T* x, int64_t d, double size, double eps, double lo, \
                              double hi) {                                                                        \
    step(x_adv, grad, x, d, size, eps, lo, hi);                                                                   \
  }
PYENGM_EACH_STORAGE(PYENGM_FOR)
#undef PYENGM_FOR

}  // namespace

template <typename T>
void pgd_l2_step_(T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, double step, double eps, double lo,
                  double hi, const Real<T>* steps, const bool* mask) {
  parallel_rows(n, d, [&](int64_t i) {
    if (mask != nullptr && !mask[i]) return;
    step_row(x_adv + i * d, grad + i * d, x + i * d, d, steps != nullptr ? steps[i] : step, eps, lo, hi);
  });
}

#define PYENGM_FOR(T)                                                                                                  \
  template void pgd_l2_step_(T*, const T*, const T*, int64_t, int64_t, double, double, double, double, const Real<T>*, \
                             const bool*);
PYENGM_EACH_STORAGE(PYENGM_FOR)

}  // namespace pyengm::cpu
