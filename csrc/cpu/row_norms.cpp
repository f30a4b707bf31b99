#include "../row_norms.h"

#include <cmath>

#include "ops.h"
#include "rows.h"

namespace pyengm::cpu {

#define PYENGM_FOR(T)                                        \
  PYENGM_CLONES double square_sum(const T* row, int64_t d) { \
    double sum;                                              \
    sum_row<SquareTerms>(&sum, row, row, row, d);            \
    return sum;                                              \
  }
PYENGM_EACH_STORAGE(PYENGM_FOR)
#undef PYENGM_FOR

template <typename T>
void row_norms(Real<T>* out, const T* t, int64_t n, int64_t d) {
  parallel_rows(n, d, [&](int64_t i) { out[i] = Real<T>(std::sqrt(square_sum(t + i * d, d))); });
}

#define PYENGM_FOR(T) template void row_norms(Real<T>*, const T*, int64_t, int64_t);
PYENGM_EACH_STORAGE(PYENGM_FOR)

}  // namespace pyengm::cpu
