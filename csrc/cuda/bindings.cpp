// pyengm._cuda: as pyengm._C, with the device index and the address of the current stream in front.
#include <pybind11/pybind11.h>

#include "ops.h"

namespace py = pybind11;
using Address = uintptr_t;

namespace {

pyengm::cuda::Launch at(int device, Address stream) { return {device, reinterpret_cast<void*>(stream)}; }

template <typename T>
void pgd_linf_step_(int device, Address stream, Address x_adv, Address grad, Address x, int64_t n, int64_t d,
                    double step, double eps, double lo, double hi, Address steps, Address mask) {
  py::gil_scoped_release release;
  pyengm::cuda::pgd_linf_step_(at(device, stream), reinterpret_cast<T*>(x_adv), reinterpret_cast<const T*>(grad),
                               reinterpret_cast<const T*>(x), n, d, T(step), T(eps), T(lo), T(hi),
                               reinterpret_cast<const T*>(steps), reinterpret_cast<const bool*>(mask));
}

template <typename T>
void pgd_l2_step_(int device, Address stream, Address x_adv, Address grad, Address x, int64_t n, int64_t d, double step,
                  double eps, double lo, double hi, Address steps, Address mask) {
  py::gil_scoped_release release;
  pyengm::cuda::pgd_l2_step_(at(device, stream), reinterpret_cast<T*>(x_adv), reinterpret_cast<const T*>(grad),
                             reinterpret_cast<const T*>(x), n, d, step, eps, lo, hi, reinterpret_cast<const T*>(steps),
                             reinterpret_cast<const bool*>(mask));
}

template <typename T>
void row_norms(int device, Address stream, Address out, Address t, int64_t n, int64_t d) {
  py::gil_scoped_release release;
  pyengm::cuda::row_norms(at(device, stream), reinterpret_cast<T*>(out), reinterpret_cast<const T*>(t), n, d);
}

template <typename T>
void fosc(int device, Address stream, Address out, Address x_adv, Address grad, Address x, int64_t n, int64_t d,
          double eps, bool l2) {
  py::gil_scoped_release release;
  pyengm::cuda::fosc(at(device, stream), reinterpret_cast<T*>(out), reinterpret_cast<const T*>(x_adv),
                     reinterpret_cast<const T*>(grad), reinterpret_cast<const T*>(x), n, d, eps, l2);
}

template <typename T>
void fosc_step_(int device, Address stream, Address out, Address x_adv, Address grad, Address x, Address active,
                int64_t n, int64_t d, double step, double eps, double threshold, double lo, double hi) {
  py::gil_scoped_release release;
  pyengm::cuda::fosc_step_(at(device, stream), reinterpret_cast<T*>(out), reinterpret_cast<T*>(x_adv),
                           reinterpret_cast<const T*>(grad), reinterpret_cast<const T*>(x),
                           reinterpret_cast<bool*>(active), n, d, step, eps, threshold, lo, hi);
}

template <typename T>
void atas_step_(int device, Address stream, Address sizes, Address x_adv, Address grad, Address x, Address v, int64_t n,
                int64_t d, double eps, double largest, double c, double low, double high, double beta, double lo,
                double hi) {
  py::gil_scoped_release release;
  pyengm::cuda::atas_step_(at(device, stream), reinterpret_cast<T*>(sizes), reinterpret_cast<T*>(x_adv),
                           reinterpret_cast<const T*>(grad), reinterpret_cast<const T*>(x), reinterpret_cast<T*>(v), n,
                           d, {largest, c, low, high, beta}, eps, lo, hi);
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

template <void (*Kernel)(pyengm::cuda::Launch, float*, const int64_t*, int64_t, int64_t, pyengm::Stream)>
void philox(int device, Address stream, Address out, Address index, int64_t n, int64_t count, uint64_t seed,
            uint32_t epoch, uint32_t purpose) {
  py::gil_scoped_release release;
  Kernel(at(device, stream), reinterpret_cast<float*>(out), reinterpret_cast<const int64_t*>(index), n, count,
         {uint32_t(seed), uint32_t(seed >> 32), epoch, purpose});
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of pyengm on raw addresses; call them through pyengm.ops.";
  m.def("pgd_linf_step_f32", &pgd_linf_step_<float>);
  m.def("pgd_linf_step_f64", &pgd_linf_step_<double>);
  m.def("pgd_l2_step_f32", &pgd_l2_step_<float>);
  m.def("pgd_l2_step_f64", &pgd_l2_step_<double>);
  m.def("row_norms_f32", &row_norms<float>);
  m.def("row_norms_f64", &row_norms<double>);
  m.def("fosc_f32", &fosc<float>);
  m.def("fosc_f64", &fosc<double>);
  m.def("fosc_step_f32", &fosc_step_<float>);
  m.def("fosc_step_f64", &fosc_step_<double>);
  m.def("atas_step_f32", &atas_step_<float>);
  m.def("atas_step_f64", &atas_step_<double>);
  m.def("clip_weights_f32", &clip_weights<float>);
  m.def("clip_weights_f64", &clip_weights<double>);
  m.def("regression_statistics_f32", &regression_statistics<float>);
  m.def("regression_statistics_f64", &regression_statistics<double>);
  m.def("regression_weights_f32", &regression_weights<float>);
  m.def("regression_weights_f64", &regression_weights<double>);
  m.def("philox_uniform", &philox<pyengm::cuda::philox_uniform>);
  m.def("philox_normal", &philox<pyengm::cuda::philox_normal>);
}
