// pyengm._C: addresses are integers, so that the module needs no torch headers and works with every version of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "ops.h"

namespace py = pybind11;
using Address = uintptr_t;
using pyengm::Real;

namespace {

template <typename T>
void pgd_linf_step_(Address x_adv, Address grad, Address x, int64_t n, int64_t d, double step, double eps, double lo,
                    double hi, Address steps, Address mask) {
  py::gil_scoped_release release;
  pyengm::cpu::pgd_linf_step_(reinterpret_cast<T*>(x_adv), reinterpret_cast<const T*>(grad),
                              reinterpret_cast<const T*>(x), n, d, Real<T>(step), Real<T>(eps), Real<T>(lo),
                              Real<T>(hi), reinterpret_cast<const Real<T>*>(steps),
                              reinterpret_cast<const bool*>(mask));
}

template <typename T>
void pgd_l2_step_(Address x_adv, Address grad, Address x, int64_t n, int64_t d, double step, double eps, double lo,
                  double hi, Address steps, Address mask) {
  py::gil_scoped_release release;
  pyengm::cpu::pgd_l2_step_(reinterpret_cast<T*>(x_adv), reinterpret_cast<const T*>(grad),
                            reinterpret_cast<const T*>(x), n, d, step, eps, lo, hi,
                            reinterpret_cast<const Real<T>*>(steps), reinterpret_cast<const bool*>(mask));
}

template <typename T>
void row_norms(Address out, Address t, int64_t n, int64_t d) {
  py::gil_scoped_release release;
  pyengm::cpu::row_norms(reinterpret_cast<Real<T>*>(out), reinterpret_cast<const T*>(t), n, d);
}

template <typename T>
void fosc(Address out, Address x_adv, Address grad, Address x, int64_t n, int64_t d, double eps, bool l2) {
  py::gil_scoped_release release;
  pyengm::cpu::fosc(reinterpret_cast<Real<T>*>(out), reinterpret_cast<const T*>(x_adv),
                    reinterpret_cast<const T*>(grad), reinterpret_cast<const T*>(x), n, d, eps, l2);
}

template <typename T>
void fosc_step_(Address out, Address x_adv, Address grad, Address x, Address active, int64_t n, int64_t d, double step,
                double eps, double threshold, double lo, double hi) {
  py::gil_scoped_release release;
  pyengm::cpu::fosc_step_(reinterpret_cast<Real<T>*>(out), reinterpret_cast<T*>(x_adv),
                          reinterpret_cast<const T*>(grad), reinterpret_cast<const T*>(x),
                          reinterpret_cast<bool*>(active), n, d, step, eps, threshold, lo, hi);
}

template <typename T>
void atas_step_(Address sizes, Address x_adv, Address grad, Address x, Address v, int64_t n, int64_t d, double eps,
                double step_scale, double c, double min_step, double max_step, double beta, double lo, double hi) {
  py::gil_scoped_release release;
  pyengm::cpu::atas_step_(reinterpret_cast<Real<T>*>(sizes), reinterpret_cast<T*>(x_adv),
                          reinterpret_cast<const T*>(grad), reinterpret_cast<const T*>(x),
                          reinterpret_cast<Real<T>*>(v), n, d, {step_scale, c, min_step, max_step, beta}, eps, lo, hi);
}

template <typename T>
void clip_weights(Address out, Address norms, int64_t n, double alpha) {
  py::gil_scoped_release release;
  pyengm::cpu::clip_weights(reinterpret_cast<T*>(out), reinterpret_cast<const T*>(norms), n, T(alpha));
}

template <typename T>
void regression_statistics(Address out, Address x, Address y, int64_t n) {
  py::gil_scoped_release release;
  pyengm::cpu::regression_statistics(reinterpret_cast<double*>(out), reinterpret_cast<const T*>(x),
                                     reinterpret_cast<const T*>(y), n);
}

template <typename T>
void regression_weights(Address weights, Address line, Address x, Address y, Address old, int64_t n, double alpha,
                        double keep) {
  py::gil_scoped_release release;
  pyengm::cpu::regression_weights(reinterpret_cast<T*>(weights), reinterpret_cast<double*>(line),
                                  reinterpret_cast<const T*>(x), reinterpret_cast<const T*>(y),
                                  reinterpret_cast<const double*>(old), n, alpha, keep);
}

template <typename T>
void row_sums(Address sums, Address dots, Address g, Address x, int64_t rows, int64_t columns) {
  py::gil_scoped_release release;
  pyengm::cpu::row_sums(reinterpret_cast<T*>(sums), reinterpret_cast<T*>(dots), reinterpret_cast<const T*>(g),
                        reinterpret_cast<const T*>(x), rows, columns);
}

using Sizes = std::array<int64_t, 8>;

pyengm::cpu::Images images(const Sizes& v) { return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]}; }

pyengm::cpu::Conv2d conv2d(const Sizes& x, const Sizes& g, const Sizes& v) {
  return {images(x), images(g), {v[0], v[1]}, {v[2], v[3]}, {v[4], v[5]}, {v[6], v[7]}};
}

// x, g: sizes, then strides; window: kernel, stride, padding, dilation, each for y and x.
template <typename T>
void conv_gram_sqnorm(Address out, Address x, Address g, const Sizes& x_layout, const Sizes& g_layout,
                      const Sizes& window) {
  py::gil_scoped_release release;
  pyengm::cpu::conv_gram_sqnorm(reinterpret_cast<T*>(out), reinterpret_cast<const T*>(x), reinterpret_cast<const T*>(g),
                                conv2d(x_layout, g_layout, window));
}

template <typename T>
void conv_direct_sqnorm(Address out, Address gradients, Address x, Address g, const Sizes& x_layout,
                        const Sizes& g_layout, const Sizes& window) {
  py::gil_scoped_release release;
  pyengm::cpu::conv_direct_sqnorm(reinterpret_cast<T*>(out), reinterpret_cast<T*>(gradients),
                                  reinterpret_cast<const T*>(x), reinterpret_cast<const T*>(g),
                                  conv2d(x_layout, g_layout, window));
}

template <void (*Kernel)(float*, const int64_t*, int64_t, int64_t, pyengm::Stream)>
void philox(Address out, Address index, int64_t n, int64_t count, uint64_t seed, uint32_t epoch, uint32_t purpose) {
  py::gil_scoped_release release;
  Kernel(reinterpret_cast<float*>(out), reinterpret_cast<const int64_t*>(index), n, count,
         {uint32_t(seed), uint32_t(seed >> 32), epoch, purpose});
}

void crop_flip(Address out, Address images, Address positions, Address rows, Address cols, Address flip, int64_t n,
               int64_t total, int64_t channels, int64_t height, int64_t width, int64_t padding, bool channels_last) {
  py::gil_scoped_release release;
  pyengm::cpu::crop_flip(reinterpret_cast<float*>(out), reinterpret_cast<const uint8_t*>(images),
                         reinterpret_cast<const int64_t*>(positions), reinterpret_cast<const int64_t*>(rows),
                         reinterpret_cast<const int64_t*>(cols), reinterpret_cast<const bool*>(flip),
                         {n, total, channels, height, width, padding, channels_last});
}

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
  const pyengm::Words r = pyengm::philox4x32({{c[0], c[1], c[2], c[3]}}, key[0], key[1]);
  return {r.w[0], r.w[1], r.w[2], r.w[3]};
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

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of pyengm on raw addresses; call them through pyengm.ops.";
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
  PYENGM_DEF("conv_gram_sqnorm", conv_gram_sqnorm);
  PYENGM_DEF("conv_direct_sqnorm", conv_direct_sqnorm);
  m.def("crop_flip", &crop_flip);
  m.def("philox_uniform", &philox<pyengm::cpu::philox_uniform>);
  m.def("philox_normal", &philox<pyengm::cpu::philox_normal>);
  m.def("philox4x32", &philox4x32, "The raw generator: counter (4 words), key (2 words) -> 4 words.");
}
