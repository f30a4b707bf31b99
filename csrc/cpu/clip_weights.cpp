#include "../clip_weights.h"

#include "ops.h"
#include "simd.h"

namespace pyengm::cpu {

namespace {

PYENGM_CLONES void weigh(float* __restrict out, const float* __restrict norms, int64_t size, float alpha) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) out[i] = clip_weight(norms[i], alpha);
}
PYENGM_CLONES void weigh(double* __restrict out, const double* __restrict norms, int64_t size, double alpha) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) out[i] = clip_weight(norms[i], alpha);
}

}  // namespace

template <typename T>
void clip_weights(T* out, const T* norms, int64_t n, T alpha) {
  parallel_chunks(n, 1, [&](int64_t begin, int64_t end) { weigh(out + begin, norms + begin, end - begin, alpha); });
}

template void clip_weights(float*, const float*, int64_t, float);
template void clip_weights(double*, const double*, int64_t, double);

}  // namespace pyengm::cpu
