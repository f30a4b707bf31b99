#include "../clip_weights.h"
#include "launch.h"

namespace pyengm::cuda {
namespace {

template <typename T>
__global__ void weigh(T* __restrict__ out, const T* __restrict__ norms, int64_t n, T alpha) {
  for (int64_t i = first_item(); i < n; i += grid_stride()) out[i] = clip_weight(norms[i], alpha);
}

}  // namespace

template <typename T>
void clip_weights(Launch at, T* out, const T* norms, int64_t n, T alpha) {
  launch(at, n, "clip_weights", weigh<T>, out, norms, n, alpha);
}

template void clip_weights(Launch, float*, const float*, int64_t, float);
template void clip_weights(Launch, double*, const double*, int64_t, double);

}  // namespace pyengm::cuda
