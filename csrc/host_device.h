// Marks a formula that the CPU and the CUDA kernels share, and that is compiled into each of them.
#pragma once

#ifdef __CUDACC__
#define PYENGM_HD __host__ __device__ __forceinline__
#else
#define PYENGM_HD inline __attribute__((always_inline))
#endif
