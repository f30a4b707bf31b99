// CUDA entry points: device pointers, the device's index and a stream; each throws std::runtime_error on failure.
#pragma once
#include <cstdint>

#include "../philox.h"

namespace pyengm::cuda {

struct Launch {
  int device;
  void* stream;  // cudaStream_t
};

template <typename T>
void pgd_linf_step_(Launch launch, T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, T step, T eps, T lo, T hi,
                    const T* steps, const bool* mask);

template <typename T>
void clip_weights(Launch launch, T* out, const T* norms, int64_t n, T alpha);

template <typename T>
void regression_statistics(Launch launch, double* out, const T* x, const T* y, int64_t n);

template <typename T>
void regression_weights(Launch launch, T* weights, double* line, const T* x, const T* y, const double* old, int64_t n,
                        double alpha, double keep);

void philox_uniform(Launch launch, float* out, const int64_t* index, int64_t n, int64_t count, Stream stream);
void philox_normal(Launch launch, float* out, const int64_t* index, int64_t n, int64_t count, Stream stream);

}  // namespace pyengm::cuda
