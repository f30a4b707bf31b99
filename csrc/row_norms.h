// Squared L2 norm of an example, for host and device.
#pragma once
#include "host_device.h"

namespace pyengm {

struct SquareTerms {
  static constexpr int count = 1;
  static constexpr bool offset = false;  // whether x_adv - x is needed
  static PYENGM_HD void add(double* sums, double grad, double) { sums[0] += grad * grad; }
};

}  // namespace pyengm
