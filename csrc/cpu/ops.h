// CPU entry points: plain pointers into dense memory; Python has checked sizes, types and overlap.
#pragma once
#include <array>
#include <cstdint>

#include "../atas_step.h"
#include "../crop_flip.h"
#include "../philox.h"
#include "../storage.h"

namespace pyengm::cpu {

// x_adv, grad, x: n examples of d elements each. steps (n) replaces step, mask (n) selects examples; both may be null.
template <typename T>
void pgd_linf_step_(T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, Real<T> step, Real<T> eps, Real<T> lo,
                    Real<T> hi, const Real<T>* steps, const bool* mask);

// The same in the L2 ball; sums are in float64, in an order that does not depend on the number of threads.
template <typename T>
void pgd_l2_step_(T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, double step, double eps, double lo,
                  double hi, const Real<T>* steps, const bool* mask);

// out (n): L2 norms of the rows of t (n, d).
template <typename T>
void row_norms(Real<T>* out, const T* t, int64_t n, int64_t d);

// out (n): the first-order stationary condition of each example in the L-infinity or the L2 ball.
template <typename T>
void fosc(Real<T>* out, const T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, double eps, bool l2);

// The same in the L-infinity ball; then active (n) becomes false where the condition is at most the threshold, and the
// examples that are still active take a step.
template <typename T>
void fosc_step_(Real<T>* out, T* x_adv, const T* grad, const T* x, bool* active, int64_t n, int64_t d, double step,
                double eps, double threshold, double lo, double hi);

// sizes, v (n): the step size of each example and its moving average of the squared norm of the gradient.
template <typename T>
void atas_step_(Real<T>* sizes, T* x_adv, const T* grad, const T* x, Real<T>* v, int64_t n, int64_t d, AtasRule rule,
                double eps, double lo, double hi);

// The ops above on one row and one thread; overloads, because only plain functions have clones.
#define PYENGM_FOR(T)                                                                                            \
  void linf_step_range(T* x_adv, const T* grad, const T* x, int64_t size, Real<T> step, Real<T> eps, Real<T> lo, \
                       Real<T> hi);                                                                              \
  double square_sum(const T* row, int64_t d);
PYENGM_EACH_STORAGE(PYENGM_FOR)
#undef PYENGM_FOR

// out: float32 images, as crop_flip.h describes; rows, cols, flip (n).
void crop_flip(float* out, const uint8_t* images, const int64_t* positions, const int64_t* rows, const int64_t* cols,
               const bool* flip, CropFlipShape shape);

template <typename T>
void clip_weights(T* out, const T* norms, int64_t n, T alpha);

// out (5): sums over examples of 1, x, y, x^2 and x y; x, y (n).
template <typename T>
void regression_statistics(double* out, const T* x, const T* y, int64_t n);

// weights (n) of a line (2: intercept, slope), moved from old (2) towards the fit of y on x unless y is null.
template <typename T>
void regression_weights(T* weights, double* line, const T* x, const T* y, const double* old, int64_t n, double alpha,
                        double keep);

// out (n, count): values 0 to count-1 of each example.
void philox_uniform(float* out, const int64_t* index, int64_t n, int64_t count, Stream stream);
void philox_normal(float* out, const int64_t* index, int64_t n, int64_t count, Stream stream);

// sums, dots (rows): the sum of each row of g, and of its products with x; g, x (rows, columns).
template <typename T>
void row_sums(T* sums, T* dots, const T* g, const T* x, int64_t rows, int64_t columns);

// A batch of images by the distances between neighbours, in elements; any memory format.
struct Images {
  int64_t n, channels, height, width;
  int64_t to_example, to_channel, to_row, to_column;
};

// x (n, C, H, W) and the output gradient g (n, O, Ho, Wo) of a convolution without groups; y before x in each pair.
struct Conv2d {
  Images x, g;
  std::array<int64_t, 2> kernel, stride, padding, dilation;
};

// out (n): squared norms of the per-example weight gradients.
template <typename T>
void conv_gram_sqnorm(T* out, const T* x, const T* g, const Conv2d& conv);

// The same from the gradients themselves, which are written to gradients (n, O, C, kh, kw) unless that is null.
template <typename T>
void conv_direct_sqnorm(T* out, T* gradients, const T* x, const T* g, const Conv2d& conv);

}  // namespace pyengm::cpu
