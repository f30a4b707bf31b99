#include "../fosc.h"

#include "ops.h"
#include "rows.h"

namespace pyengm::cpu {
namespace {

template <typename T>
PYENGM_INLINE double fosc_of_row(const T* x_adv, const T* grad, const T* x, int64_t d, double eps, bool l2) {
  double sums[2];
  if (l2) {
    sum_row<FoscTerms<true>>(sums, grad, x_adv, x, d);
    return fosc_of<true>(sums, eps);
  }
  sum_row<FoscTerms<false>>(sums, grad, x_adv, x, d);
  return fosc_of<false>(sums, eps);
}

#define PYENGM_FOR(T)                                                                                         \
  PYENGM_CLONES Real<T> fosc_row(const T* x_adv, const T* grad, const T* x, int64_t d, double eps, bool l2) { \
    return Real<T>(fosc_of_row(x_adv, grad, x, d, eps, l2));                                                  \
  }
PYENGM_EACH_STORAGE(PYENGM_FOR)
#undef PYENGM_FOR

}  // namespace

template <typename T>
void fosc(Real<T>* out, const T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, double eps, bool l2) {
  parallel_rows(n, d, [&](int64_t i) { out[i] = fosc_row(x_adv + i * d, grad + i * d, x + i * d, d, eps, l2); });
}

template <typename T>
void fosc_step_(Real<T>* out, T* x_adv, const T* grad, const T* x, bool* active, int64_t n, int64_t d, double step,
                double eps, double threshold, double lo, double hi) {
  using R = Real<T>;
  parallel_rows(n, d, [&](int64_t i) {
    out[i] = fosc_row(x_adv + i * d, grad + i * d, x + i * d, d, eps, false);
    active[i] = active[i] && !(out[i] <= R(threshold));
    if (active[i]) linf_step_range(x_adv + i * d, grad + i * d, x + i * d, d, R(step), R(eps), R(lo), R(hi));
  });
}

#define PYENGM_FOR(T)                                                                                                 \
  template void fosc(Real<T>*, const T*, const T*, const T*, int64_t, int64_t, double, bool);                         \
  template void fosc_step_(Real<T>*, T*, const T*, const T*, bool*, int64_t, int64_t, double, double, double, double, \
                           double);
PYENGM_EACH_STORAGE(PYENGM_FOR)

}  // namespace pyengm::cpu
