#include "../row_norms.h"

#include <cmath>

#include "ops.h"
#include "rows.h"

namespace pyengm::cpu {

PYENGM_CLONES double square_sum(const float* row, int64_t d) {
  double sum;
  sum_row<SquareTerms, float>(&sum, row, row, row, d);
  return sum;
}
PYENGM_CLONES double square_sum(const double* row, int64_t d) {
  double sum;
  sum_row<SquareTerms, double>(&sum, row, row, row, d);
  return sum;
}

template <typename T>
void row_norms(T* out, const T* t, int64_t n, int64_t d) {
  parallel_rows(n, d, [&](int64_t i) { out[i] = T(std::sqrt(square_sum(t + i * d, d))); });
}

template void row_norms(float*, const float*, int64_t, int64_t);
template void row_norms(double*, const double*, int64_t, int64_t);

}  // namespace pyengm::cpu
