#include "../clip_weights.h"

#include "ops.h"

namespace pyengm::cpu {

// A batch has a few hundred norms: one plain loop, which the baseline vector width serves.
template <typename T>
void clip_weights(T* out, const T* norms, int64_t n, T alpha) {
  for (int64_t i = 0; i < n; ++i) out[i] = clip_weight(norms[i], alpha);
}

template void clip_weights(float*, const float*, int64_t, float);
template void clip_weights(double*, const double*, int64_t, double);

}  // namespace pyengm::cpu
