// One block per example: 16-byte accesses where they fit, and sums in float64 in an order that only d decides.
#pragma once
#include "launch.h"

namespace pyengm::cuda {

// Four elements per thread in one access.
template <typename T>
struct alignas(4 * sizeof(T)) Quad {
  T v[4];
};

template <typename T>
bool aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % alignof(Quad<T>) == 0;
}

// Whether each of n rows of d elements may be read in quads.
template <typename T>
bool fits_quads(int64_t d, const T* a, const T* b, const T* c) {
  return d % 4 == 0 && aligned(a) && aligned(b) && aligned(c);
}

template <typename T>
__device__ __forceinline__ Quad<T> load_quad(const T* p, bool wide) {
  if (wide) return *reinterpret_cast<const Quad<T>*>(p);
  return {{p[0], p[1], p[2], p[3]}};
}

constexpr int kRowThreads = 1024;  // few examples are to fill a GPU; block_sum wants a warp of warps

// Runs kernel<<<>>>(args...) on a block per row; kernels loop over rows with a grid stride.
template <typename... Params, typename... Args>
void launch_rows(Launch at, int64_t rows, const char* name, void (*kernel)(Params...), Args... args) {
  launch_blocks(at, rows, kRowThreads, name, kernel, args...);
}

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;  // the same in every lane: a + b and b + a round alike
}

// Sums over the block, in every thread. All threads have passed what came before when one returns.
template <int Count>
__device__ void block_sum(double* sums) {
  __shared__ double warps[Count][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();  // the sums of the previous row have been read
  for (int k = 0; k < Count; ++k) {
    const double sum = warp_sum(sums[k]);
    if (lane == 0) warps[k][warp] = sum;
  }
  __syncthreads();
  for (int k = 0; k < Count; ++k) sums[k] = warp_sum(warps[k][lane]);
}

// sums (Terms::count), in every thread; x_adv and x are read only for Terms::offset.
template <typename Terms, typename T>
__device__ void sum_row(double* sums, const T* grad, const T* x_adv, const T* x, int64_t d, bool wide) {
  for (int k = 0; k < Terms::count; ++k) sums[k] = 0.0;
  for (int64_t i = 4 * threadIdx.x; i + 4 <= d; i += 4 * kRowThreads) {
    const Quad<T> g = load_quad(grad + i, wide);
    Quad<T> a{}, c{};
    if constexpr (Terms::offset) {
      a = load_quad(x_adv + i, wide);
      c = load_quad(x + i, wide);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) Terms::add(sums, double(g.v[j]), double(a.v[j]) - double(c.v[j]));
  }
  if (const int64_t i = d / 4 * 4 + threadIdx.x; i < d) {
    double offset = 0.0;
    if constexpr (Terms::offset) offset = double(x_adv[i]) - double(x[i]);
    Terms::add(sums, double(grad[i]), offset);
  }
  block_sum<Terms::count>(sums);
}

// x_adv <- step(x_adv, grad, x), element by element.
template <typename T, typename Step>
__device__ void update_row(T* x_adv, const T* grad, const T* x, int64_t d, bool wide, const Step& step) {
  const int64_t quads = wide ? d / 4 : 0;
  for (int64_t q = threadIdx.x; q < quads; q += kRowThreads) {
    Quad<T> a = reinterpret_cast<Quad<T>*>(x_adv)[q];
    const Quad<T> g = reinterpret_cast<const Quad<T>*>(grad)[q], c = reinterpret_cast<const Quad<T>*>(x)[q];
#pragma unroll
    for (int i = 0; i < 4; ++i) a.v[i] = step(a.v[i], g.v[i], c.v[i]);
    reinterpret_cast<Quad<T>*>(x_adv)[q] = a;
  }
  for (int64_t i = 4 * quads + threadIdx.x; i < d; i += kRowThreads) x_adv[i] = step(x_adv[i], grad[i], x[i]);
}

}  // namespace pyengm::cuda
