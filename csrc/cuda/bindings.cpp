// pyengm._cuda12, _cuda13, ...: as pyengm._C, with device index and address of the current stream as first arguments.
#include <pybind11/pybind11.h>

#include "ops.h"

namespace py = pybind11;
using Address = uintptr_t;
using pyengm::Real;

namespace {

pyengm::cuda::Launch at(int device, Address stream) { return {device, reinterpret_cast<void*>(stream)}; }

template <typename T>
void pgd_linf_step_(int device, Address stream, Address x_adv, Address grad, Address x, int64_t n, int64_t d,
                    double step, double eps, double lo, double hi, Address steps, Address mask) {
  py::gil_scoped_release release;
  pyengm::cuda::pgd_linf_step_(at(device, stream), reinterpret_cast<T*>(x_adv), reinterpret_cast<const T*>(grad),
                               reinterpret_cast<const T*>(x), n, d, Real<T>(step), Real<T>(eps), Real<T>(lo),
                               Real<T>(hi), reinterpret_cast<const Real<T>*>(steps),
                               reinterpret_cast<const bool*>(mask));
}

template <typename T>
void pgd_l2_step_(int device, Address stream, Address x_adv, Address grad, Address x, int64_t n, int64_t d, double step,
                  double eps, double lo, double hi, Address steps, Address mask, Address workspace) {
  py::gil_scoped_release release;
  pyengm::cuda::pgd_l2_step_(at(device, stream), reinterpret_cast<T*>(x_adv), reinterpret_cast<const T*>(grad),
                             reinterpret_cast<const T*>(x), n, d, step, eps, lo, hi,
                             reinterpret_cast<const Real<T>*>(steps), reinterpret_cast<const bool*>(mask),
                             reinterpret_cast<void*>(workspace));
}

template <typename T>
void row_norms(int device, Address stream, Address out, Address t, int64_t n, int64_t d, Address workspace) {
  py::gil_scoped_release release;
  pyengm::cuda::row_norms(at(device, stream), reinterpret_cast<Real<T>*>(out), reinterpret_cast<const T*>(t), n, d,
                          reinterpret_cast<void*>(workspace));
}

template <typename T>
void fosc(int device, Address stream, Address out, Address x_adv, Address grad, Address x, int64_t n, int64_t d,
          double eps, bool l2, Address workspace) {
  py::gil_scoped_release release;
  pyengm::cuda::fosc(at(device, stream), reinterpret_cast<Real<T>*>(out), reinterpret_cast<const T*>(x_adv),
                     reinterpret_cast<const T*>(grad), reinterpret_cast<const T*>(x), n, d, eps, l2,
                     reinterpret_cast<void*>(workspace));
}

template <typename T>
void fosc_step_(int device, Address stream, Address out, Address x_adv, Address grad, Address x, Address active,
                int64_t n, int64_t d, double step, double eps, double threshold, double lo, double hi,
                Address workspace) {
  py::gil_scoped_release release;
  pyengm::cuda::fosc_step_(at(device, stream), reinterpret_cast<Real<T>*>(out), reinterpret_cast<T*>(x_adv),
                           reinterpret_cast<const T*>(grad), reinterpret_cast<const T*>(x),
                           reinterpret_cast<bool*>(active), n, d, step, eps, threshold, lo, hi,
                           reinterpret_cast<void*>(workspace));
}

template <typename T>
void atas_step_(int device, Address stream, Address sizes, Address x_adv, Address grad, Address x, Address v, int64_t n,
                int64_t d, double eps, double step_scale, double c, double min_step, double max_step, double beta,
                double lo, double hi, Address workspace) {
  py::gil_scoped_release release;
  pyengm::cuda::atas_step_(at(device, stream), reinterpret_cast<Real<T>*>(sizes), reinterpret_cast<T*>(x_adv),
                           reinterpret_cast<const T*>(grad), reinterpret_cast<const T*>(x),
                           reinterpret_cast<Real<T>*>(v), n, d, {step_scale, c, min_step, max_step, beta}, eps, lo, hi,
                           reinterpret_cast<void*>(workspace));
}

template <typename T>
void clip_weights(int device, Address stream, Address out, Address norms, int64_t n, double alpha) {
  py::gil_scoped_release release;
  pyengm::cuda::clip_weights(at(device, stream), reinterpret_cast<T*>(out), reinterpret_cast<const T*>(norms), n,
                             T(alpha));
}

template <typename T>
void regression_statistics(int device, Address stream, Address out, Address x, Address y, int64_t n) {
  py::gil_scoped_release release;
  pyengm::cuda::regression_statistics(at(device, stream), reinterpret_cast<double*>(out), reinterpret_cast<const T*>(x),
                                      reinterpret_cast<const T*>(y), n);
}

template <typename T>
void regression_weights(int device, Address stream, Address weights, Address line, Address x, Address y, Address old,
                        int64_t n, double alpha, double keep) {
  py::gil_scoped_release release;
  pyengm::cuda::regression_weights(at(device, stream), reinterpret_cast<T*>(weights), reinterpret_cast<double*>(line),
                                   reinterpret_cast<const T*>(x), reinterpret_cast<const T*>(y),
                                   reinterpret_cast<const double*>(old), n, alpha, keep);
}

template <typename T>
void row_sums(int device, Address stream, Address sums, Address dots, Address g, Address x, int64_t rows,
              int64_t columns) {
  py::gil_scoped_release release;
  pyengm::cuda::row_sums(at(device, stream), reinterpret_cast<T*>(sums), reinterpret_cast<T*>(dots),
                         reinterpret_cast<const T*>(g), reinterpret_cast<const T*>(x), rows, columns);
}

void crop_flip(int device, Address stream, Address out, Address images, Address positions, Address rows, Address cols,
               Address flip, int64_t n, int64_t total, int64_t channels, int64_t height, int64_t width, int64_t padding,
               bool channels_last) {
  py::gil_scoped_release release;
  pyengm::cuda::crop_flip(at(device, stream), reinterpret_cast<float*>(out), reinterpret_cast<const uint8_t*>(images),
                          reinterpret_cast<const int64_t*>(positions), reinterpret_cast<const int64_t*>(rows),
                          reinterpret_cast<const int64_t*>(cols), reinterpret_cast<const bool*>(flip),
                          {n, total, channels, height, width, padding, channels_last});
}

template <void (*Kernel)(pyengm::cuda::Launch, float*, const int64_t*, int64_t, int64_t, pyengm::Stream)>
void philox(int device, Address stream, Address out, Address index, int64_t n, int64_t count, uint64_t seed,
            uint32_t epoch, uint32_t purpose) {
  py::gil_scoped_release release;
  Kernel(at(device, stream), reinterpret_cast<float*>(out), reinterpret_cast<const int64_t*>(index), n, count,
         {uint32_t(seed), uint32_t(seed >> 32), epoch, purpose});
}

}  // namespace

// A kernel carries the type of the data in its name.
#define PYENGM_DEF(name, kernel)        \
  m.def(name "_f32", &(kernel<float>)); \
  m.def(name "_f64", &(kernel<double>))
#define PYENGM_DEF_STORAGE(name, kernel)            \
  PYENGM_DEF(name, kernel);                         \
  m.def(name "_bf16", &(kernel<pyengm::BFloat16>)); \
  m.def(name "_f16", &(kernel<pyengm::Half>))

#ifndef PYENGM_CUDA_MODULE  // setup.py adds the release of CUDA
#define PYENGM_CUDA_MODULE _cuda
#endif
PYBIND11_MODULE(PYENGM_CUDA_MODULE, m) {
  m.doc() = "CUDA kernels of pyengm on raw addresses; call them through pyengm.ops.";
  PYENGM_DEF_STORAGE("pgd_linf_step", pgd_linf_step_);
  PYENGM_DEF_STORAGE("pgd_l2_step", pgd_l2_step_);
  PYENGM_DEF_STORAGE("row_norms", row_norms);
  PYENGM_DEF_STORAGE("fosc", fosc);
  PYENGM_DEF_STORAGE("fosc_step", fosc_step_);
  PYENGM_DEF_STORAGE("atas_step", atas_step_);
  PYENGM_DEF("clip_weights", clip_weights);
  PYENGM_DEF("regression_statistics", regression_statistics);
  PYENGM_DEF("regression_weights", regression_weights);
  PYENGM_DEF("row_sums", row_sums);
  m.def("crop_flip", &crop_flip);
  m.def("rows_workspace", &pyengm::cuda::rows_workspace, "Bytes of the workspace of kernels on n rows of d elements.");
  m.def("philox_uniform", &philox<pyengm::cuda::philox_uniform>);
  m.def("philox_normal", &philox<pyengm::cuda::philox_normal>);
}
