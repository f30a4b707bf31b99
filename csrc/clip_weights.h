// Weight of one example in ENGM (Dabouei et al. 2022, Eq. 5), for host and device.
#pragma once
#include "host_device.h"

namespace pyengm {

// min(alpha / norm, 1), which does not divide by 0: 0 -> 1, inf -> 0, nan -> nan.
template <typename T>
PYENGM_HD T clip_weight(T norm, T alpha) {
  return norm > alpha ? alpha / norm : (norm == norm ? T(1) : norm);
}

}  // namespace pyengm
