// CPU entry points: plain pointers into dense memory; Python has checked sizes, types and overlap.
#pragma once
#include <cstdint>

#include "../philox.h"

namespace pyengm::cpu {

// x_adv, grad, x: n examples of d elements each. steps (n) replaces step, mask (n) selects examples; both may be null.
template <typename T>
void pgd_linf_step_(T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, T step, T eps, T lo, T hi,
                    const T* steps, const bool* mask);

template <typename T>
void clip_weights(T* out, const T* norms, int64_t n, T alpha);

// out (n, count): numbers 0 to count-1 of each example.
void philox_uniform(float* out, const int64_t* index, int64_t n, int64_t count, Stream stream);
void philox_normal(float* out, const int64_t* index, int64_t n, int64_t count, Stream stream);

}  // namespace pyengm::cpu
