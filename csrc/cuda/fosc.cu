#include "../fosc.h"
#include "../pgd_linf_step.h"
#include "rows.h"

namespace pyengm::cuda {
namespace {

template <bool L2, typename R>
struct Conditions {
  using Terms = FoscTerms<L2>;
  static constexpr bool steps = false;
  R* out;
  double eps;

  static __device__ bool skips(int64_t) { return false; }
  __device__ bool decide(int64_t row, const double* sums) const {
    out[row] = R(fosc_of<L2>(sums, eps));
    return true;
  }
};

template <typename R>
struct FoscStep {
  using Terms = FoscTerms<false>;
  static constexpr bool steps = true;
  R* out;
  bool* active;
  double radius;
  R step, eps, threshold, lo, hi;

  static __device__ bool skips(int64_t) { return false; }
  __device__ bool decide(int64_t row, const double* sums) const {
    const R condition = R(fosc_of<false>(sums, radius));
    out[row] = condition;
    return active[row] = active[row] && !(condition <= threshold);
  }
  static __device__ bool moves(bool move) { return move; }
  template <int Width>
  __device__ void step_elements(R (&x_adv)[Width], const R (&grad)[Width], const R (&x)[Width], bool) const {
    pgd_linf_steps(x_adv, grad, x, step, eps, lo, hi);
  }
};

}  // namespace

template <typename T>
void fosc(Launch at, Real<T>* out, const T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, double eps, bool l2,
          void* workspace) {
  if (l2)
    launch_rows(at, "fosc", Conditions<true, Real<T>>{out, eps}, x_adv, grad, x, n, d, workspace);
  else
    launch_rows(at, "fosc", Conditions<false, Real<T>>{out, eps}, x_adv, grad, x, n, d, workspace);
}

template <typename T>
void fosc_step_(Launch at, Real<T>* out, T* x_adv, const T* grad, const T* x, bool* active, int64_t n, int64_t d,
                double step, double eps, double threshold, double lo, double hi, void* workspace) {
  using R = Real<T>;
  const FoscStep<R> op{out, active, eps, R(step), R(eps), R(threshold), R(lo), R(hi)};
  launch_rows(at, "fosc_step_", op, x_adv, grad, x, n, d, workspace);
}

#define PYENGM_FOR(T)                                                                                                 \
  template void fosc(Launch, Real<T>*, const T*, const T*, const T*, int64_t, int64_t, double, bool, void*);          \
  template void fosc_step_(Launch, Real<T>*, T*, const T*, const T*, bool*, int64_t, int64_t, double, double, double, \
                           double, double, void*);
PYENGM_EACH_STORAGE(PYENGM_FOR)

}  // namespace pyengm::cuda
