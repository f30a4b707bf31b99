// Sums of products, for host and device. What the terms of a sum are is said once, for sums in any arithmetic.
#pragma once
#include "host_device.h"

namespace pyengm {

template <typename R>
PYENGM_HD void add_product(R& sum, R a, R b) {
  sum += a * b;
}

}  // namespace pyengm
