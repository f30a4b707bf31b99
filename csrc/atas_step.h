// Step size of one example in ATAS (Huang et al. 2022, Eq. 3 and 4), for host and device.
#pragma once
#include <cmath>

#include "host_device.h"

namespace pyengm {

struct AtasRule {
  double step_scale, c, min_step, max_step, beta;
};

template <typename T>
struct AtasStep {
  T v, size;
  bool moves;
};

// square: |grad|^2. Where the average would not be finite, neither it nor the example changes.
template <typename T>
PYENGM_HD AtasStep<T> atas_step(T v, double square, AtasRule rule) {
  const T average = T(rule.beta * double(v) + (1.0 - rule.beta) * square);
  const bool moves = average - average == T(0);
  v = moves ? average : v;
  double size = rule.step_scale / (1.0 + sqrt(double(v)) / rule.c);
  size = size < rule.min_step ? rule.min_step : size;
  return {v, T(size > rule.max_step ? rule.max_step : size), moves};
}

}  // namespace pyengm
