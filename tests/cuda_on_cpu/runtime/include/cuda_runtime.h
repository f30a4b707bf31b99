// The part of CUDA that csrc/cuda uses. Two things that a macro cannot do are rewritten in the sources before they are
// compiled (../../compile_kernels.py): kernel<<<...>>>( and the declarations of shared arrays.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../device.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define threadIdx (emu::thread_idx())
#define blockIdx (emu::block_idx())
#define blockDim (emu::block_dim())
#define gridDim (emu::grid_dim())
#define __syncthreads() emu::barrier(__FILE__, __LINE__)
#define __threadfence() emu::fence()
#define __nanosleep(nanoseconds) emu::sleep()
#define __shfl_xor_sync(mask, value, distance) emu::shuffle_xor(mask, value, distance, __FILE__, __LINE__)
#define __ballot_sync(mask, vote) emu::ballot(mask, vote, __FILE__, __LINE__)

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline void __stcg(float4* to, float4 value) { *to = value; }

using cudaError_t = int;
using cudaStream_t = void*;
constexpr int cudaSuccess = 0, cudaDevAttrMultiProcessorCount = 16;

namespace emu {

template <typename T>
T shuffle_xor(unsigned mask, T value, int distance, const char* file, int line) noexcept {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = exchange(mask, bits, distance, int(sizeof(T)), file, line);
  memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), int blocks, int threads, size_t, cudaStream_t, Args... args) {
  auto call = [=] { kernel(args...); };
  const auto body = [](void* closure) { (*static_cast<decltype(call)*>(closure))(); };
  run(__PRETTY_FUNCTION__, blocks, threads, body, &call, sizeof call);
}

}  // namespace emu

// A shared array, or a single shared value; the last argument is its type, which may contain commas.
#define EMU_SHARED(name, ...)      \
  static const char name##_key{};  \
  using name##_type = __VA_ARGS__; \
  name##_type& name = *static_cast<name##_type*>(emu::shared_array(&name##_key, sizeof(name##_type)))

inline unsigned atomicAdd(unsigned* at, unsigned value) { return unsigned(emu::atomic(at, 4, true, value)); }
inline unsigned atomicExch(unsigned* at, unsigned value) { return unsigned(emu::atomic(at, 4, false, value)); }
inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) {
  return emu::atomic(at, 8, true, value);
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = emu::multiprocessors();
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = emu::allocate(bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  emu::fill(at, value, bytes);
  return cudaSuccess;
}
