#include "../pgd_l2_step.h"
#include "rows.h"

namespace pyengm::cuda {
namespace {

// An L2Move for steps in float32. push is a product with the square of scale, a power of two, so that neither they nor
// their products with elements leave the range of float32, but where the result does. scale is 1 for most gradients.
struct PairMove {
  FloatPair keep, push, pull;
  float scale;

  PairMove() = default;
  explicit __device__ PairMove(const L2Move& move)
      : keep(pair_of(move.keep)), push(pair_of(move.push)), pull(pair_of(move.pull)), scale(1.0f) {
    if (move.push == 0.0 || move.push - move.push != 0.0) return;     // zero, nan or inf
    const double bounded = fmax(-0x1p299, fmin(move.push, 0x1p299));  // with the least float32 the step is still inf
    const int hundreds = ilogb(bounded) / 100;
    scale = float(ldexp(1.0, 50 * hundreds));
    push = pair_of(ldexp(bounded, -100 * hundreds));
  }
};

// The result of an element but for its bounds. With m the sum of the absolute values of its three terms, it has an
// error below 2^-42 m, and one below 2^-20 m from m = 2^120 on.
__device__ __forceinline__ float exact_step(float x_adv, float grad, float x, const PairMove& move) {
  const float keep = move.keep.high * x_adv, push = move.push.high * grad, pull = move.pull.high * x;
  const float most = fabsf(keep) + fabsf(push) + fabsf(pull);
  PairSum sum;
  sum.begin(most);
  add_product(sum, x_adv, move.keep);
  add_product(sum, grad, move.push);
  add_product(sum, x, move.pull);
  return most < 0x1p120f ? sum.exact_part() + sum.low : keep + push + pull;
}

// The same with an error below 2^-22 m; `most` becomes at least m.
__device__ __forceinline__ float quick_step(float x_adv, float grad, float x, const PairMove& move, float& most) {
  const float push = move.push.high * grad;
  most = fabsf(x_adv) + fabsf(push) + fabsf(x);  // neither keep nor pull is above 1
  return fmaf(move.keep.high, x_adv, fmaf(move.pull.high, x, push));
}

// The results of neighbouring elements of 16 bits but for their bounds. quick_step is enough, as its error is below
// 2^-12 of the result, but where the result is a small difference alone, or a subnormal number of Half. The bounds for
// one element are smaller than those for all, so that no result depends on the other elements.
template <typename T, int Width>
__device__ __forceinline__ void short_steps(float (&out)[Width], const float (&x_adv)[Width],
                                            const float (&grad)[Width], const float (&x)[Width], const PairMove& move) {
  constexpr float least = std::is_same_v<T, Half> ? 0x1p-14f : 0.0f;
  bool all = true;
  float most;
  for (int j = 0; j < Width; ++j) {
    out[j] = quick_step(x_adv[j], grad[j], x[j], move, most);
    all &= fabsf(out[j]) >= fmaf(0x1p-9f, most, 2 * least);
  }
  if (all) return;
  for (int j = 0; j < Width; ++j) {
    quick_step(x_adv[j], grad[j], x[j], move, most);
    if (!(fabsf(out[j]) >= fmaf(0x1p-10f, most, least))) out[j] = exact_step(x_adv[j], grad[j], x[j], move);
  }
}

template <typename T, int Width>
__device__ __forceinline__ void pgd_l2_steps(float (&x_adv)[Width], float (&grad)[Width], const float (&x)[Width],
                                             const PairMove& move, float lo, float hi) {
  if (move.push.high == 0.0f) {  // 0 * nan is nan
    for (int j = 0; j < Width; ++j) grad[j] = 0.0f;
  }
  if (move.scale != 1.0f) {
    for (int j = 0; j < Width; ++j) grad[j] = grad[j] * move.scale * move.scale;
  }
  float v[Width];
  if constexpr (sizeof(T) == 2)
    short_steps<T>(v, x_adv, grad, x, move);
  else
    for (int j = 0; j < Width; ++j) v[j] = exact_step(x_adv[j], grad[j], x[j], move);
  for (int j = 0; j < Width; ++j) x_adv[j] = fminf(fmaxf(v[j], lo), hi);
  if (move.keep.high != move.keep.high) {  // only then is an element nan, and all are
    for (int j = 0; j < Width; ++j) x_adv[j] = NAN;
  }
}

template <typename T>
struct L2Step {
  using R = Real<T>;
  using Move = std::conditional_t<std::is_same_v<T, double>, L2Move, PairMove>;
  using Terms = L2Terms;
  static constexpr bool steps = true;
  double step, eps;
  R lo, hi;
  const R* sizes;
  const bool* mask;

  __device__ bool skips(int64_t row) const { return mask != nullptr && !mask[row]; }
  __device__ Move decide(int64_t row, const double* sums) const {
    return Move(l2_move(sums, sizes != nullptr ? double(sizes[row]) : step, eps));
  }
  static __device__ bool moves(const Move&) { return true; }
  template <int Width>
  __device__ void step_elements(R (&x_adv)[Width], R (&grad)[Width], const R (&x)[Width], const Move& move) const {
    if constexpr (std::is_same_v<T, double>)
      for (int j = 0; j < Width; ++j) x_adv[j] = pgd_l2_step(x_adv[j], grad[j], x[j], move, lo, hi);
    else
      pgd_l2_steps<T>(x_adv, grad, x, move, lo, hi);
  }
};

}  // namespace

template <typename T>
void pgd_l2_step_(Launch at, T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, double step, double eps,
                  double lo, double hi, const Real<T>* steps, const bool* mask, void* workspace) {
  const L2Step<T> op{step, eps, Real<T>(lo), Real<T>(hi), steps, mask};
  launch_rows(at, "pgd_l2_step_", op, x_adv, grad, x, n, d, workspace);
}

#define PYENGM_FOR(T)                                                                                          \
  template void pgd_l2_step_(Launch, T*, const T*, const T*, int64_t, int64_t, double, double, double, double, \
                             const Real<T>*, const bool*, void*);
PYENGM_EACH_STORAGE(PYENGM_FOR)

}  // namespace pyengm::cuda
