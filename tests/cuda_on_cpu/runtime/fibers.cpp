// Fibers: a stack each, and a switch that saves the registers a function must preserve.
#include <sys/mman.h>

#include <new>

#include "grid.h"

#ifndef __x86_64__
#error "the switch of fibers is written for x86-64"
#endif
asm(R"(
.text
emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
extern "C" void emu_switch(void** save, void* load) asm("emu_switch");

namespace emu {
namespace {

constexpr size_t kGuardBytes = 4096;
constexpr int kSavedRegisters = 6;
void* scheduler_stack_pointer;
std::vector<Fiber*> unused;

char* new_stack() {
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kGuardBytes, PROT_NONE);  // an overflow of the stack ends the process
  return static_cast<char*>(memory);
}

}  // namespace

Fiber* new_fiber(void (*start)()) {
  auto* fiber = unused.empty() ? new Fiber : unused.back();
  char* stack = unused.empty() ? new_stack() : fiber->stack;
  if (!unused.empty()) unused.pop_back();
  *fiber = Fiber{};
  fiber->stack = stack;
  auto** top = reinterpret_cast<void**>(stack + kStackBytes - 16);
  *--top = nullptr;  // start has no caller
  *--top = reinterpret_cast<void*>(start);
  for (int k = 0; k < kSavedRegisters; ++k) *--top = nullptr;
  fiber->stack_pointer = top;
  return fiber;
}

void recycle(Fiber* fiber) {
  fiber->known = fiber->received = fiber->released = nullptr;
  unused.push_back(fiber);
}

void release_stacks() {
  for (Fiber* fiber : unused) {
    munmap(fiber->stack, kStackBytes);
    delete fiber;
  }
  unused.clear();
}

void resume(Fiber* fiber) { emu_switch(&scheduler_stack_pointer, fiber->stack_pointer); }
void suspend(Fiber* fiber) { emu_switch(&fiber->stack_pointer, scheduler_stack_pointer); }

}  // namespace emu
