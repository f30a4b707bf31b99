#include "../pgd_l2_step.h"
#include "rows.h"

namespace pyengm::cuda {
namespace {

template <typename R>
struct L2Step {
  using Terms = L2Terms;
  static constexpr bool steps = true;
  double step, eps, lo, hi;
  const R* sizes;
  const bool* mask;

  __device__ bool skips(int64_t row) const { return mask != nullptr && !mask[row]; }
  __device__ L2Move decide(int64_t row, const double* sums) const {
    return l2_move(sums, sizes != nullptr ? double(sizes[row]) : step, eps);
  }
  static __device__ bool moves(const L2Move&) { return true; }
  __device__ R element(R x_adv, R grad, R x, const L2Move& move) const {
    return pgd_l2_step(x_adv, grad, x, move, lo, hi);
  }
};

}  // namespace

template <typename T>
void pgd_l2_step_(Launch at, T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, double step, double eps,
                  double lo, double hi, const Real<T>* steps, const bool* mask, void* workspace) {
  const L2Step<Real<T>> op{step, eps, lo, hi, steps, mask};
  launch_rows(at, "pgd_l2_step_", op, x_adv, grad, x, n, d, workspace);
}

#define PYENGM_FOR(T)                                                                                          \
  template void pgd_l2_step_(Launch, T*, const T*, const T*, int64_t, int64_t, double, double, double, double, \
                             const Real<T>*, const bool*, void*);
PYENGM_EACH_STORAGE(PYENGM_FOR)

}  // namespace pyengm::cuda
