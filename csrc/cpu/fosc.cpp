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

PYENGM_CLONES float fosc_row(const float* x_adv, const float* grad, const float* x, int64_t d, double eps, bool l2) {
  return float(fosc_of_row(x_adv, grad, x, d, eps, l2));
}
PYENGM_CLONES double fosc_row(const double* x_adv, const double* grad, const double* x, int64_t d, double eps,
                              bool l2) {
  return fosc_of_row(x_adv, grad, x, d, eps, l2);
}

}  // namespace

template <typename T>
void fosc(T* out, const T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, double eps, bool l2) {
  parallel_rows(n, d, [&](int64_t i) { out[i] = fosc_row(x_adv + i * d, grad + i * d, x + i * d, d, eps, l2); });
}

template <typename T>
void fosc_step_(T* out, T* x_adv, const T* grad, const T* x, bool* active, int64_t n, int64_t d, double step,
                double eps, double threshold, double lo, double hi) {
  parallel_rows(n, d, [&](int64_t i) {
    out[i] = fosc_row(x_adv + i * d, grad + i * d, x + i * d, d, eps, false);
    active[i] = active[i] && !(out[i] <= T(threshold));
    if (active[i]) linf_step_range(x_adv + i * d, grad + i * d, x + i * d, d, T(step), T(eps), T(lo), T(hi));
  });
}

template void fosc(float*, const float*, const float*, const float*, int64_t, int64_t, double, bool);
template void fosc(double*, const double*, const double*, const double*, int64_t, int64_t, double, bool);
template void fosc_step_(float*, float*, const float*, const float*, bool*, int64_t, int64_t, double, double, double,
                         double, double);
template void fosc_step_(double*, double*, const double*, const double*, bool*, int64_t, int64_t, double, double,
                         double, double, double);

}  // namespace pyengm::cpu
