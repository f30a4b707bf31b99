#include "../atas_step.h"

#include "ops.h"
#include "rows.h"

namespace pyengm::cpu {

template <typename T>
void atas_step_(T* sizes, T* x_adv, const T* grad, const T* x, T* v, int64_t n, int64_t d, AtasRule rule, double eps,
                double lo, double hi) {
  parallel_rows(n, d, [&](int64_t i) {
    const AtasStep<T> step = atas_step(v[i], square_sum(grad + i * d, d), rule);
    sizes[i] = step.size;
    v[i] = step.v;
    if (step.moves) linf_step_range(x_adv + i * d, grad + i * d, x + i * d, d, step.size, T(eps), T(lo), T(hi));
  });
}

template void atas_step_(float*, float*, const float*, const float*, float*, int64_t, int64_t, AtasRule, double, double,
                         double);
template void atas_step_(double*, double*, const double*, const double*, double*, int64_t, int64_t, AtasRule, double,
                         double, double);

}  // namespace pyengm::cpu
