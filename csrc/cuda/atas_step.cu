#include "../atas_step.h"
#include "../pgd_linf_step.h"
#include "../row_norms.h"
#include "rows.h"

namespace pyengm::cuda {
namespace {

template <typename R>
struct Atas {
  using Terms = SquareTerms;
  static constexpr bool steps = true;
  R *sizes, *v;
  AtasRule rule;
  R eps, lo, hi;

  static __device__ bool skips(int64_t) { return false; }
  __device__ AtasStep<R> decide(int64_t row, const double* sums) const {
    const AtasStep<R> step = atas_step(v[row], sums[0], rule);
    sizes[row] = step.size;
    v[row] = step.v;
    return step;
  }
  static __device__ bool moves(const AtasStep<R>& step) { return step.moves; }
  template <int Width>
  __device__ void step_elements(R (&x_adv)[Width], const R (&grad)[Width], const R (&x)[Width],
                                const AtasStep<R>& step) const {
    pgd_linf_steps(x_adv, grad, x, step.size, eps, lo, hi);
  }
};

}  // namespace

template <typename T>
void atas_step_(Launch at, Real<T>* sizes, T* x_adv, const T* grad, const T* x, Real<T>* v, int64_t n, int64_t d,
                AtasRule rule, double eps, double lo, double hi, void* workspace) {
  using R = Real<T>;
  launch_rows(at, "atas_step_", Atas<R>{sizes, v, rule, R(eps), R(lo), R(hi)}, x_adv, grad, x, n, d, workspace);
}

#define PYENGM_FOR(T)                                                                                              \
  template void atas_step_(Launch, Real<T>*, T*, const T*, const T*, Real<T>*, int64_t, int64_t, AtasRule, double, \
                           double, double, void*);
PYENGM_EACH_STORAGE(PYENGM_FOR)

}  // namespace pyengm::cuda
