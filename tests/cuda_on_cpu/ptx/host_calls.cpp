// The functions of the CUDA runtime that nvcc's host code and csrc/cuda call. Kernels are those of the translated PTX.
// As on a device, cudaGetLastError returns the error of a launch.
#include <map>
#include <stdexcept>
#include <string>

#include "device.h"

namespace ptx {
void entry(const char* name, void (*body)(void**), int most_threads);
}

namespace {

constexpr int kSuccess = 0, kInvalidValue = 1, kLaunchFailure = 719, kMultiProcessorCount = 16;

struct Entry {
  void (*body)(void**);
  int most_threads;  // 0: as many as a block may have
};
struct Shape {
  dim3 grid, block;
  size_t shared;
  void* stream;
} pushed;
int last_error = kSuccess;
std::string last_text;

std::map<std::string, Entry>& entries() {  // by their names in PTX
  static std::map<std::string, Entry> all;
  return all;
}
std::map<const void*, std::string>& kernels() {  // by the functions that stand for them on the host
  static std::map<const void*, std::string> all;
  return all;
}

void launch(const void* kernel, dim3 blocks, dim3 threads, void** arguments) {
  const std::string& name = kernels().at(kernel);
  const auto found = entries().find(name);
  if (found == entries().end()) throw std::runtime_error("no translated PTX of " + name);
  if (blocks.y * blocks.z * threads.y * threads.z != 1) throw std::runtime_error("a grid of several dimensions");
  if (found->second.most_threads > 0 && int(threads.x) > found->second.most_threads)
    throw std::runtime_error("more threads than the launch bounds of " + name);
  struct Call {
    void (*body)(void**);
    void** arguments;
  } call{found->second.body, arguments};
  const auto body = [](void* own) { static_cast<Call*>(own)->body(static_cast<Call*>(own)->arguments); };
  emu::run(name.c_str(), int(blocks.x), int(threads.x), body, &call, sizeof call);
}

int checked_launch(const void* kernel, dim3 blocks, dim3 threads, void** arguments) {
  try {
    launch(kernel, blocks, threads, arguments);
  } catch (const std::exception& error) {
    last_error = kLaunchFailure;
    last_text = error.what();
  }
  return last_error;
}

}  // namespace

void ptx::entry(const char* name, void (*body)(void**), int most_threads) { entries()[name] = {body, most_threads}; }

extern "C" {
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* device, int, void*, void*, void*, void*,
                            int*) {
  kernels()[host] = device;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
int __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *static_cast<void**>(stream) = pushed.stream;
  return kSuccess;
}
int __cudaGetKernel(const void** kernel, const void* host) {  // CUDA 13
  *kernel = host;
  return kSuccess;
}
int __cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t, void*) {
  return checked_launch(kernel, grid, block, arguments);
}
int cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** arguments, size_t, void*) {  // CUDA 12
  return checked_launch(host, grid, block, arguments);
}

int cudaGetLastError() {  // and forgets it
  const int error = last_error;
  last_error = kSuccess;
  return error;
}
const char* cudaGetErrorString(int error) { return error == kLaunchFailure ? last_text.c_str() : "no error"; }
int cudaGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}
int cudaSetDevice(int) { return kSuccess; }
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  if (attribute != kMultiProcessorCount) return kInvalidValue;
  *value = emu::multiprocessors();
  return kSuccess;
}
int cudaMemsetAsync(void* at, int value, size_t bytes, void*) {
  emu::fill(at, value, bytes);
  return kSuccess;
}
}
