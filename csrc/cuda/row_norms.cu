#include "../row_norms.h"
#include "rows.h"

namespace pyengm::cuda {
namespace {

template <typename R>
struct Norms {
  using Terms = SquareTerms;
  static constexpr bool steps = false;
  R* out;

  static __device__ bool skips(int64_t) { return false; }
  __device__ bool decide(int64_t row, const double* sums) const {
    out[row] = R(sqrt(sums[0]));
    return true;
  }
};

}  // namespace

// The longest type has the most pieces.
int64_t rows_workspace(int64_t n, int64_t d) { return d == 0 ? 0 : RowWorkspace::bytes(n, cut_row<double>(d)); }

template <typename T>
void row_norms(Launch at, Real<T>* out, const T* t, int64_t n, int64_t d, void* workspace) {
  launch_rows(at, "row_norms", Norms<Real<T>>{out}, t, t, t, n, d, workspace);
}

#define PYENGM_FOR(T) template void row_norms(Launch, Real<T>*, const T*, int64_t, int64_t, void*);
PYENGM_EACH_STORAGE(PYENGM_FOR)

}  // namespace pyengm::cuda
