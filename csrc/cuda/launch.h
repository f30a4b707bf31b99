// Starts kernels, and turns every CUDA error into an exception.
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "ops.h"

namespace pyengm::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // a launch error must not surface again in the next call
  throw std::runtime_error(std::string("pyengm on CUDA: ") + what + " failed: " + cudaGetErrorString(status));
}

// Makes a device current and restores the caller's on leaving.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device != previous_) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != previous_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

constexpr int kThreads = 256;

// Runs kernel<<<>>>(args...) on `wanted` blocks or on as many as a grid may have; kernels loop with a grid stride.
template <typename... Params, typename... Args>
void launch_blocks(Launch at, int64_t wanted, int threads, const char* name, void (*kernel)(Params...), Args... args) {
  if (wanted == 0) return;
  DeviceGuard guard(at.device);
  const int blocks = int(wanted < (1 << 20) ? wanted : (1 << 20));
  kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(at.stream)>>>(args...);
  check(cudaGetLastError(), name);
}

// The same with one thread per work item.
template <typename... Params, typename... Args>
void launch(Launch at, int64_t items, const char* name, void (*kernel)(Params...), Args... args) {
  launch_blocks(at, (items + kThreads - 1) / kThreads, kThreads, name, kernel, args...);
}

// a / b of counts. Few exceed 32 bits, and a division of 64 bits is some 70 instructions.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  return (a | b) >> 32 == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}

__device__ __forceinline__ int64_t first_item() { return blockIdx.x * int64_t(blockDim.x) + threadIdx.x; }
__device__ __forceinline__ int64_t grid_stride() { return int64_t(gridDim.x) * blockDim.x; }

}  // namespace pyengm::cuda
