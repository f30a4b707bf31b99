#include "../pgd_linf_step.h"

#include "ops.h"
#include "simd.h"

namespace pyengm::cpu {
namespace {

template <typename T>
PYENGM_INLINE void step_range(T* __restrict x_adv, const T* __restrict grad, const T* __restrict x, int64_t size,
                              T step, T eps, T lo, T hi) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) x_adv[i] = pgd_linf_step(x_adv[i], grad[i], x[i], step, eps, lo, hi);
}

}  // namespace

PYENGM_CLONES void linf_step_range(float* x_adv, const float* grad, const float* x, int64_t size, float step, float eps,
                                   float lo, float hi) {
  step_range(x_adv, grad, x, size, step, eps, lo, hi);
}
PYENGM_CLONES void linf_step_range(double* x_adv, const double* grad, const double* x, int64_t size, double step,
                                   double eps, double lo, double hi) {
  step_range(x_adv, grad, x, size, step, eps, lo, hi);
}

template <typename T>
void pgd_linf_step_(T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, T step, T eps, T lo, T hi,
                    const T* steps, const bool* mask) {
  if (steps == nullptr && mask == nullptr) {
    parallel_chunks(n * d, 1, [&](int64_t begin, int64_t end) {
      linf_step_range(x_adv + begin, grad + begin, x + begin, end - begin, step, eps, lo, hi);
    });
    return;
  }
  parallel_chunks(n * d, d, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin / d; i < end / d; ++i) {
      if (mask != nullptr && !mask[i]) continue;
      const T own = steps != nullptr ? steps[i] : step;
      linf_step_range(x_adv + i * d, grad + i * d, x + i * d, d, own, eps, lo, hi);
    }
  });
}

template void pgd_linf_step_(float*, const float*, const float*, int64_t, int64_t, float, float, float, float,
                             const float*, const bool*);
template void pgd_linf_step_(double*, const double*, const double*, int64_t, int64_t, double, double, double, double,
                             const double*, const bool*);

}  // namespace pyengm::cpu
