// A PGD step in the L2 ball, for host and device. All arithmetic is in double: the elements of a unit vector are small.
// cuda/pgd_l2_step.cu has the step of an element in pairs of float32.
#pragma once
#include <cmath>

#include "products.h"

namespace pyengm {

struct L2Terms {  // |grad|^2, <grad, x_adv - x>, |x_adv - x|^2
  static constexpr int count = 3;
  static constexpr bool offset = true;
  template <typename Sum, typename G, typename O>
  static PYENGM_HD void add(Sum* sums, G grad, O offset) {
    add_product(sums[0], grad, grad);
    add_product(sums[1], grad, offset);
    add_product(sums[2], offset, offset);
  }
};

struct L2Move {
  double keep, push, pull;  // weights of x_adv, grad and x in the result
};

// The norm of the offset after the step follows from the sums, so that one sweep over the example is enough.
PYENGM_HD L2Move l2_move(const double* sums, double step, double eps) {
  const double grad_norm = sqrt(sums[0]);
  const bool moves = grad_norm > 0.0 && grad_norm - grad_norm == 0.0;  // neither zero nor nan nor inf
  const double scale = moves ? step / grad_norm : 0.0;
  const double square = moves ? sums[2] + scale * (2.0 * sums[1] + scale * sums[0]) : sums[2];
  const double norm = sqrt(square < 0.0 ? 0.0 : square);  // rounding may make a vanishing square negative
  const double into_ball = norm <= eps ? 1.0 : eps / norm;
  const double shrink = norm - norm == 0.0 ? into_ball : NAN;  // there is no distance: the example becomes nan
  return {shrink, shrink * scale, 1.0 - shrink};
}

template <typename T>
PYENGM_HD T pgd_l2_step(T x_adv, T grad, T x, L2Move move, double lo, double hi) {
  const double g = move.push == 0.0 ? 0.0 : double(grad);  // 0 * nan is nan
  double v = move.keep * double(x_adv) + move.push * g + move.pull * double(x);
  v = v < lo ? lo : v;
  return T(v > hi ? hi : v);
}

}  // namespace pyengm
