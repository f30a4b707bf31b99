#include "../pgd_linf_step.h"
#include "rows.h"

namespace pyengm::cuda {
namespace {

// A block per piece of a row. Where all examples take the same step, they are one row.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    step_pieces(T* __restrict__ x_adv, const T* __restrict__ grad, const T* __restrict__ x, int64_t n, int64_t d,
                Cut cut, Real<T> step, Real<T> eps, Real<T> lo, Real<T> hi, const Real<T>* __restrict__ steps,
                const bool* __restrict__ mask) {
  for (int64_t block = blockIdx.x; block < n * cut.pieces; block += gridDim.x) {
    const int64_t row = quotient(block, cut.pieces), piece = block - row * cut.pieces;
    if (mask != nullptr && !mask[row]) continue;
    const int64_t at = row * d + piece * cut.length;
    const Real<T> own = steps != nullptr ? steps[row] : step;
    step_piece(x_adv + at, grad + at, x + at, cut.size(piece, d), [=](auto& from, auto& gradients, auto& centers) {
      pgd_linf_steps(from, gradients, centers, own, eps, lo, hi);
    });
  }
}

}  // namespace

template <typename T>
void pgd_linf_step_(Launch at, T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, Real<T> step, Real<T> eps,
                    Real<T> lo, Real<T> hi, const Real<T>* steps, const bool* mask) {
  if (steps == nullptr && mask == nullptr) {
    d *= n;
    n = 1;
  }
  if (d == 0) return;
  const Cut cut(d, kRowThreads * kVector<T>);  // one access per thread: small batches spread over the GPU
  launch_blocks(at, n * cut.pieces, kRowThreads, "pgd_linf_step_", step_pieces<T>, x_adv, grad, x, n, d, cut, step, eps,
                lo, hi, steps, mask);
}

#define PYENGM_FOR(T)                                                                                                \
  template void pgd_linf_step_(Launch, T*, const T*, const T*, int64_t, int64_t, Real<T>, Real<T>, Real<T>, Real<T>, \
                               const Real<T>*, const bool*);
PYENGM_EACH_STORAGE(PYENGM_FOR)

}  // namespace pyengm::cuda
