#include "../pgd_linf_step.h"
#include "rows.h"

namespace pyengm::cuda {
namespace {

// One step serves all examples, so that rows do not matter.
template <typename T>
__global__ void step_all(T* __restrict__ x_adv, const T* __restrict__ grad, const T* __restrict__ x, int64_t quads,
                         int64_t size, T step, T eps, T lo, T hi) {
  for (int64_t q = first_item(); q < quads; q += grid_stride()) {
    Quad<T> a = reinterpret_cast<Quad<T>*>(x_adv)[q];
    const Quad<T> g = reinterpret_cast<const Quad<T>*>(grad)[q], c = reinterpret_cast<const Quad<T>*>(x)[q];
#pragma unroll
    for (int i = 0; i < 4; ++i) a.v[i] = pgd_linf_step(a.v[i], g.v[i], c.v[i], step, eps, lo, hi);
    reinterpret_cast<Quad<T>*>(x_adv)[q] = a;
  }
  for (int64_t i = 4 * quads + first_item(); i < size; i += grid_stride())
    x_adv[i] = pgd_linf_step(x_adv[i], grad[i], x[i], step, eps, lo, hi);
}

template <typename T>
__global__ void step_each(T* __restrict__ x_adv, const T* __restrict__ grad, const T* __restrict__ x, int64_t d,
                          int64_t size, T step, T eps, T lo, T hi, const T* __restrict__ steps,
                          const bool* __restrict__ mask) {
  for (int64_t i = first_item(); i < size; i += grid_stride()) {
    const int64_t example = i / d;
    if (mask != nullptr && !mask[example]) continue;
    x_adv[i] = pgd_linf_step(x_adv[i], grad[i], x[i], steps != nullptr ? steps[example] : step, eps, lo, hi);
  }
}

}  // namespace

template <typename T>
void pgd_linf_step_(Launch at, T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, T step, T eps, T lo, T hi,
                    const T* steps, const bool* mask) {
  const int64_t size = n * d;
  if (steps != nullptr || mask != nullptr) {
    launch(at, size, "pgd_linf_step_", step_each<T>, x_adv, grad, x, d, size, step, eps, lo, hi, steps, mask);
    return;
  }
  const int64_t quads = aligned(x_adv) && aligned(grad) && aligned(x) ? size / 4 : 0;
  launch(at, quads > 0 ? quads : size, "pgd_linf_step_", step_all<T>, x_adv, grad, x, quads, size, step, eps, lo, hi);
}

template void pgd_linf_step_(Launch, float*, const float*, const float*, int64_t, int64_t, float, float, float, float,
                             const float*, const bool*);
template void pgd_linf_step_(Launch, double*, const double*, const double*, int64_t, int64_t, double, double, double,
                             double, const double*, const bool*);

}  // namespace pyengm::cuda
