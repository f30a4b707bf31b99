// CUDA entry points: device pointers, the device's index and a stream; each throws std::runtime_error on failure.
#pragma once
#include <cstdint>

#include "../atas_step.h"
#include "../crop_flip.h"
#include "../philox.h"
#include "../storage.h"

namespace pyengm::cuda {

struct Launch {
  int device;
  void* stream;  // cudaStream_t
};

template <typename T>
void pgd_linf_step_(Launch launch, T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, Real<T> step, Real<T> eps,
                    Real<T> lo, Real<T> hi, const Real<T>* steps, const bool* mask);

// Bytes of the workspace of the next five ops for n rows of d elements of any type; 0 for short rows. Its content is
// arbitrary.
int64_t rows_workspace(int64_t n, int64_t d);

template <typename T>
void pgd_l2_step_(Launch launch, T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, double step, double eps,
                  double lo, double hi, const Real<T>* steps, const bool* mask, void* workspace);

template <typename T>
void row_norms(Launch launch, Real<T>* out, const T* t, int64_t n, int64_t d, void* workspace);

template <typename T>
void fosc(Launch launch, Real<T>* out, const T* x_adv, const T* grad, const T* x, int64_t n, int64_t d, double eps,
          bool l2, void* workspace);

template <typename T>
void fosc_step_(Launch launch, Real<T>* out, T* x_adv, const T* grad, const T* x, bool* active, int64_t n, int64_t d,
                double step, double eps, double threshold, double lo, double hi, void* workspace);

template <typename T>
void atas_step_(Launch launch, Real<T>* sizes, T* x_adv, const T* grad, const T* x, Real<T>* v, int64_t n, int64_t d,
                AtasRule rule, double eps, double lo, double hi, void* workspace);

void crop_flip(Launch launch, float* out, const uint8_t* images, const int64_t* positions, const int64_t* rows,
               const int64_t* cols, const bool* flip, CropFlipShape shape);

// sums, dots (rows): the sum of each row of g, and of its products with x; g, x (rows, columns).
template <typename T>
void row_sums(Launch launch, T* sums, T* dots, const T* g, const T* x, int64_t rows, int64_t columns);

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
