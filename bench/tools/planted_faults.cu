// One fault for each tool of compute-sanitizer: a tool that does not report it is not at work.
//   planted_faults FAULT     bounds (memcheck), race (racecheck), unwritten (initcheck), barrier (synccheck), or none
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

namespace pyengm::planted {

constexpr int kThreads = 64;  // two warps

__global__ void none(int* values) { values[threadIdx.x] = 1; }

__global__ void bounds(int* values) { values[threadIdx.x + 1] = 1; }  // the last thread: beyond the end

__global__ void race(int* values) {
  __shared__ int shared[kThreads];
  shared[threadIdx.x] = 0;
  __syncthreads();
  shared[threadIdx.x] = int(threadIdx.x);
  values[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];  // of the other warp, without a barrier
}

__global__ void unwritten(int* values) { values[threadIdx.x] += 1; }

__global__ void barrier(int* values) {
  if (threadIdx.x < 32) __syncthreads();  // the second warp never comes
  values[threadIdx.x] = 1;
}

}  // namespace pyengm::planted

int main(int count, char** words) {
  using namespace pyengm::planted;
  const struct {
    const char* name;
    void (*kernel)(int*);
  } faults[] = {{"none", none}, {"bounds", bounds}, {"race", race}, {"unwritten", unwritten}, {"barrier", barrier}};
  for (const auto& fault : faults) {
    if (count != 2 || strcmp(words[1], fault.name) != 0) continue;
    void* memory = nullptr;
    if (cudaMalloc(&memory, kThreads * sizeof(int)) != cudaSuccess) return 3;
    const auto kernel = fault.kernel;
    kernel<<<1, kThreads, 0, nullptr>>>(static_cast<int*>(memory));
    return cudaDeviceSynchronize() == cudaSuccess ? 0 : 4;
  }
  fprintf(stderr, "usage: %s none|bounds|race|unwritten|barrier\n", words[0]);
  return 2;
}
