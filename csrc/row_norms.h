// Squared L2 norm of an example, for host and device.
#pragma once
#include "products.h"

namespace pyengm {

struct SquareTerms {
  static constexpr int count = 1;
  static constexpr bool offset = false;  // whether x_adv - x is needed
  template <typename Sum, typename G, typename O>
  static PYENGM_HD void add(Sum* sums, G grad, O) {
    add_product(sums[0], grad, grad);
  }
};

}  // namespace pyengm
