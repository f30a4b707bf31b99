// Every access must lie in a tensor of the call, in shared memory or on the thread's stack; it must be aligned; a read
// must find what somebody wrote; what a kernel is given to read it must not write. The compiler calls the hooks below
// for every access (-fsanitize=thread, whose own runtime is not linked) and for undefined arithmetic
// (-fsanitize=undefined).
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "grid.h"
#include "shadow.h"

EMU_EXPORT void emu_tensor(uintptr_t start, size_t bytes, bool writable, bool has_values);

namespace emu {
namespace {

std::vector<std::unique_ptr<Shadow>> tensors;  // of the call
std::string host_error;                        // found outside of a kernel

struct Table {
  uintptr_t start, end;
};
std::vector<Table>& tables() {  // that PTX has beside its kernels
  static std::vector<Table> all;
  return all;
}

void check_values(Shadow& shadow, uintptr_t from, uintptr_t to, bool write, const void* code) {
  uint8_t* flags = shadow.written.data() + (from - shadow.start);
  const size_t count = to - from;
  const bool any = std::any_of(flags, flags + count, [](uint8_t written) { return written; });
  if (write) std::fill_n(flags, count, uint8_t(1));
  if (!write && !any)  // padding inside a struct has no value, and is copied along
    fail("a read of memory that nobody wrote, byte " + std::to_string(from - shadow.start), code);
}

void visit(Shadow& shadow, uintptr_t at, size_t bytes, bool write, bool strong, const void* code) {
  if (write && !shadow.writable) fail("a write to memory that the kernel is given to read", code);
  for (const uintptr_t end = at + bytes; at < end;) {
    const uintptr_t word = at & ~uintptr_t(7), stop = std::min(word + 8, end);
    if (!shadow.written.empty()) check_values(shadow, at, stop, write, code);
    check_race(shadow, word, uint8_t(((1u << (stop - at)) - 1) << (at - word)), write, strong, code);
    at = stop;
  }
}

// Whether the access is to a shared array of the block; then it is checked.
bool visit_shared(uintptr_t at, size_t bytes, bool write, bool strong, const void* code) {
  for (SharedArray& array : current->block->shared) {
    const auto start = reinterpret_cast<uintptr_t>(array.start);
    if (at < start || at >= start + array.bytes) continue;
    if (at + bytes > start + array.bytes) fail("an access beyond the end of a shared array", code);
    if (array.shadow == nullptr) array.shadow = std::make_shared<Shadow>(start, array.bytes, true, false);
    visit(*static_cast<Shadow*>(array.shadow.get()), at, bytes, write, strong, code);
    return true;
  }
  return false;
}

[[noreturn]] void fail_outside(uintptr_t at, size_t bytes, bool write, const void* code) {
  std::string text = std::string(write ? "a write" : "a read") + " of " + std::to_string(bytes) +
                     " bytes outside all tensors of the call;";
  for (auto& tensor : tensors)
    text += " at byte " + std::to_string(int64_t(at - tensor->start)) + " of one of " +
            std::to_string(tensor->end - tensor->start) + ";";
  fail(text, code);
}

void hook(const void* at, size_t bytes, bool write, const void* code) {
  if (current == nullptr) return;
  if (reinterpret_cast<uintptr_t>(at) % bytes)
    fail("a misaligned " + std::string(write ? "write" : "read") + " of " + std::to_string(bytes) + " bytes", code);
  check_access(at, bytes, write, false, code);
}

void volatile_hook(const void* at, size_t bytes, bool write, const void* code) {
  if (current == nullptr) return;
  check_access(at, bytes, write, true, code);
  on_volatile(at, write);
}

void undefined(const char* kind, const void* data, const void* code) {
  struct Location {
    const char* file;
    uint32_t line, column;
  };
  const auto* at = static_cast<const Location*>(data);
  const std::string text =
      std::string("undefined arithmetic, ") + kind + ", at " + at->file + ":" + std::to_string(at->line);
  if (current != nullptr) fail(text, code);
  if (host_error.empty()) host_error = text;
}

}  // namespace

void check_access(const void* p, size_t bytes, bool write, bool strong, const void* code) {
  if (current == nullptr || bytes == 0 || tensors.empty()) return;  // no tensors: the call is not checked
  const auto at = reinterpret_cast<uintptr_t>(p);
  const auto stack = reinterpret_cast<uintptr_t>(current->stack);
  if (at >= stack && at < stack + kStackBytes) return;
  for (auto& tensor : tensors)
    if (tensor->contains(at, bytes)) return visit(*tensor, at, bytes, write, strong, code);
  if (visit_shared(at, bytes, write, strong, code)) return;
  const auto closure = reinterpret_cast<uintptr_t>(grid->closure);  // the arguments of the kernel
  if (!write && at >= closure && at + bytes <= closure + grid->closure_bytes) return;
  for (const Table& table : tables())
    if (!write && at >= table.start && at + bytes <= table.end) return;
  fail_outside(at, bytes, write, code);
}

void check_instruction(const void* at, size_t bytes, bool write, bool strong, bool constant, const void* code) {
  for (auto& tensor : tensors)
    if (constant && tensor->writable && tensor->contains(reinterpret_cast<uintptr_t>(at), bytes))
      fail("a read as a constant (ld.global.nc) of memory that the kernel may write", code);
  if (strong) return volatile_hook(at, bytes, write, code);
  hook(at, bytes, write, code);
}

void constant_memory(const void* at, size_t bytes) {
  const auto start = reinterpret_cast<uintptr_t>(at);
  tables().push_back({start, start + bytes});
}

void on_allocate(const void* at, size_t bytes) { emu_tensor(reinterpret_cast<uintptr_t>(at), bytes, true, false); }

void on_fill(const void* p, size_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  for (auto& tensor : tensors)
    if (tensor->contains(at, bytes)) {
      if (!tensor->written.empty()) std::fill_n(tensor->written.data() + (at - tensor->start), bytes, uint8_t(1));
      return;
    }
  if (!tensors.empty() && bytes && host_error.empty()) host_error = "cudaMemsetAsync outside all tensors of the call";
}

void throw_host_error() {
  if (host_error.empty()) return;
  std::string text;
  text.swap(host_error);
  throw std::runtime_error("emulated CUDA: " + text);
}

}  // namespace emu

// A tensor of the next call. has_values: whether all of it may be read.
EMU_EXPORT void emu_tensor(uintptr_t start, size_t bytes, bool writable, bool has_values) {
  if (bytes) emu::tensors.push_back(std::make_unique<emu::Shadow>(start, bytes, writable, has_values));
}

// The first byte of a tensor that nobody has written, or -1.
EMU_EXPORT int64_t emu_first_unwritten(uintptr_t start) {
  for (auto& tensor : emu::tensors) {
    const auto first = std::find(tensor->written.begin(), tensor->written.end(), 0);
    if (tensor->start == start && first != tensor->written.end()) return first - tensor->written.begin();
  }
  return -1;
}

EMU_EXPORT void emu_end_call() { emu::tensors.clear(); }

EMU_EXPORT const char* emu_host_error() {  // and forgets it
  static std::string text;
  text.clear();
  text.swap(emu::host_error);
  return text.c_str();
}

#define CODE __builtin_return_address(0)
#define HOOKS(N)                                                                          \
  void __tsan_read##N(void* p) { emu::hook(p, N, false, CODE); }                          \
  void __tsan_write##N(void* p) { emu::hook(p, N, true, CODE); }                          \
  void __tsan_unaligned_read##N(void* p) { emu::check_access(p, N, false, false, CODE); } \
  void __tsan_unaligned_write##N(void* p) { emu::check_access(p, N, true, false, CODE); } \
  void __tsan_volatile_read##N(void* p) { emu::volatile_hook(p, N, false, CODE); }        \
  void __tsan_volatile_write##N(void* p) { emu::volatile_hook(p, N, true, CODE); }
#define UNDEFINED(kind) \
  void __ubsan_handle_##kind(void* data, uintptr_t, uintptr_t) { emu::undefined(#kind, data, CODE); }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_read_range(void* p, size_t n) { emu::check_access(p, n, false, false, CODE); }
void __tsan_write_range(void* p, size_t n) { emu::check_access(p, n, true, false, CODE); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
UNDEFINED(add_overflow)
UNDEFINED(sub_overflow)
UNDEFINED(mul_overflow)
UNDEFINED(negate_overflow)
UNDEFINED(divrem_overflow)
UNDEFINED(shift_out_of_bounds)
UNDEFINED(out_of_bounds)
UNDEFINED(type_mismatch_v1)
UNDEFINED(load_invalid_value)
UNDEFINED(pointer_overflow)
UNDEFINED(nonnull_arg)
UNDEFINED(vla_bound_not_positive)
}
