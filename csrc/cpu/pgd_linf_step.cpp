#include "../pgd_linf_step.h"

#include "ops.h"
#include "simd.h"

namespace pyengm::cpu {
namespace {

template <typename T>
PYENGM_INLINE void step_range(T* __restrict x_adv, const T* __restrict grad, const T* __restrict x, int64_t size,
                              Real<T> step, Real<T> eps, Real<T> lo, Real<T> hi) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i)
    x_adv[i] = narrow<T>(pgd_linf_step(widen(x_adv[i]), widen(grad[i]), widen(x[i]), step, eps, lo, hi));
}

}  // namespace

#define PYENGM_FOR(T)                                                                                              \
  PYENGM_CLONES void linf_step_range(T* x_adv, const T* grad, const T* x, int64_t size, Real<T> step, Real<T> eps, \
                                     Real<T> lo, Real<T> hi) {                                                     \
    step_range(x_adv, grad, x, size, step, eps, lo, hi);                                                           \
  }
PYENGM_EACH_STORAGE(PYENGM_FOR)
#undef PYENGM_FOR

template <typename T>
void pgd_linf_step_(T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, Real<T> step, Real<T> eps, Real<T> lo,
                    Real<T> hi, const Real<T>* steps, const bool* mask) {
  if (steps == nullptr && mask == nullptr) {
    parallel_chunks(n * d, 1, [&](int64_t begin, int64_t end) {
      linf_step_range(x_adv + begin, grad + begin, x + begin, end - begin, step, eps, lo, hi);
    });
    return;
  }
  parallel_chunks(n * d, d, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin / d; i < end / d; ++i) {
      if (mask != nullptr && !mask[i]) continue;
      const Real<T> own = steps != nullptr ? steps[i] : step;
      linf_step_range(x_adv + i * d, grad + i * d, x + i * d, d, own, eps, lo, hi);
    }
  });
}

#define PYENGM_FOR(T)                                                                                        \
  template void pgd_linf_step_(T*, const T*, const T*, int64_t, int64_t, Real<T>, Real<T>, Real<T>, Real<T>, \
                               const Real<T>*, const bool*);
PYENGM_EACH_STORAGE(PYENGM_FOR)

}  // namespace pyengm::cpu
