#include "../atas_step.h"

#include "ops.h"
#include "rows.h"

namespace pyengm::cpu {

template <typename T>
void atas_step_(Real<T>* sizes, T* x_adv, const T* grad, const T* x, Real<T>* v, int64_t n, int64_t d, AtasRule rule,
                double eps, double lo, double hi) {
  using R = Real<T>;
  parallel_rows(n, d, [&](int64_t i) {
    const AtasStep<R> step = atas_step(v[i], square_sum(grad + i * d, d), rule);
    sizes[i] = step.size;
    v[i] = step.v;
    if (step.moves) linf_step_range(x_adv + i * d, grad + i * d, x + i * d, d, step.size, R(eps), R(lo), R(hi));
  });
}

#define PYENGM_FOR(T)                                                                                              \
  template void atas_step_(Real<T>*, T*, const T*, const T*, Real<T>*, int64_t, int64_t, AtasRule, double, double, \
                           double);
PYENGM_EACH_STORAGE(PYENGM_FOR)

}  // namespace pyengm::cpu
