// First-order stationary condition (Wang et al. 2019, Eq. 5 and 6), for host and device.
#pragma once
#include <cmath>

#include "products.h"

namespace pyengm {

template <bool L2>
struct FoscTerms {  // |grad|_1 or |grad|_2^2, <grad, x_adv - x>
  static constexpr int count = 2;
  static constexpr bool offset = true;
  template <typename Sum, typename G, typename O>
  static PYENGM_HD void add(Sum* sums, G grad, O offset) {
    if constexpr (L2)
      add_product(sums[0], grad, grad);
    else
      add_product(sums[0], grad < G(0) ? -grad : grad, G(1));
    add_product(sums[1], grad, offset);
  }
};

// The radius times the dual norm of the gradient, less the part that the example has reached.
template <bool L2>
PYENGM_HD double fosc_of(const double* sums, double eps) {
  return eps * (L2 ? sqrt(sums[0]) : sums[0]) - sums[1];
}

}  // namespace pyengm
