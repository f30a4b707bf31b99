// One element of a PGD step in the L-infinity ball, for host and device.
#pragma once
#include "host_device.h"

namespace pyengm {

// x_adv + step * sign(grad), projected to [x - eps, x + eps] and then to [lo, hi]; sign(0) = sign(nan) = 0. It is nan
// where x_adv or x is.
template <typename T>
PYENGM_HD T pgd_linf_step(T x_adv, T grad, T x, T step, T eps, T lo, T hi) {
  T v = x_adv + step * (T(grad > T(0)) - T(grad < T(0)));
  const T lower = x - eps, upper = x + eps;
  v = v < lower ? lower : v;
  v = v > upper ? upper : v;
  v = v < lo ? lo : v;
  v = v > hi ? hi : v;
  return x == x ? v : x;
}

// The same of neighbouring elements.
template <int Width, typename T>
PYENGM_HD void pgd_linf_steps(T (&x_adv)[Width], const T (&grad)[Width], const T (&x)[Width], T step, T eps, T lo,
                              T hi) {
  for (int j = 0; j < Width; ++j) x_adv[j] = pgd_linf_step(x_adv[j], grad[j], x[j], step, eps, lo, hi);
}

}  // namespace pyengm
