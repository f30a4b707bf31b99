// What device code is made of: csrc/cuda by include/cuda_runtime.h, nvcc's PTX by ../ptx/semantics.h.
#pragma once
#include <cstddef>
#include <cstdint>

struct dim3 {
  unsigned x, y, z;
};

namespace emu {

dim3 thread_idx() noexcept;
dim3 block_idx() noexcept;
dim3 block_dim() noexcept;
dim3 grid_dim() noexcept;
void barrier(const char* file, int line) noexcept;
void fence() noexcept;
void sleep() noexcept;
// A collective of a warp: gives `bits` to the other lanes, and returns the value of lane (own ^ distance). All lanes of
// the mask must come with the same kind and distance, from the same line.
uint64_t exchange(unsigned mask, uint64_t bits, int distance, int kind, const char* file, int line) noexcept;
unsigned ballot(unsigned mask, bool vote, const char* file, int line) noexcept;
// The block's memory for one shared array, which `key` identifies; its first content is garbage.
void* shared_array(const void* key, size_t bytes) noexcept;
char* shared_memory() noexcept;  // of the block: where all of its arrays are
unsigned long long atomic(void* at, int bytes, bool add, unsigned long long operand) noexcept;
void fill(void* at, int value, size_t bytes);
void* allocate(size_t bytes);
int multiprocessors() noexcept;
// Runs body(closure) in every thread. It throws std::runtime_error on everything that a GPU does not define.
void run(const char* kernel, int blocks, int threads, void (*body)(void*), void* closure, size_t closure_bytes);

}  // namespace emu
