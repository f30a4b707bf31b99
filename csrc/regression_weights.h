// A-ENGM (Dabouei et al. 2022, Sec. 2.5): a line fitted to gradient norms, and its weights; for host and device.
#pragma once
#include "clip_weights.h"

namespace pyengm {

// Sums over examples of 1, x, y, x^2 and x y; x: norm of the gradient in the input, y: in the parameters.
constexpr int kLineSums = 5;
struct LineSums {
  double v[kLineSums];
};

struct Line {
  double intercept, slope;
};

PYENGM_HD void add_example(LineSums& sums, double x, double y) {
  sums.v[0] += 1.0;
  sums.v[1] += x;
  sums.v[2] += y;
  sums.v[3] += x * x;
  sums.v[4] += x * y;
}

// Moves a line towards the least squares fit; keep is the share of the old line. Where x does not vary only the
// intercept is fitted; without examples, or where a sum is not finite, the line does not change.
PYENGM_HD Line fit_line(const LineSums& sums, Line old, double keep) {
  const double n = sums.v[0], spread = n * sums.v[3] - sums.v[1] * sums.v[1];
  const bool varies = spread > 1e-12 * n * sums.v[3];
  const double slope = varies ? (n * sums.v[4] - sums.v[1] * sums.v[2]) / spread : old.slope;
  const double intercept = (sums.v[2] - slope * sums.v[1]) / n;
  if (!(slope - slope == 0.0) || !(intercept - intercept == 0.0)) return old;
  return {keep * old.intercept + (1.0 - keep) * intercept, keep * old.slope + (1.0 - keep) * slope};
}

// min(alpha / (slope x + intercept), 1), which is 1 where the line predicts 0 or less.
template <typename T>
PYENGM_HD T line_weight(T x, Line line, double alpha) {
  return T(clip_weight(line.slope * double(x) + line.intercept, alpha));
}

}  // namespace pyengm
