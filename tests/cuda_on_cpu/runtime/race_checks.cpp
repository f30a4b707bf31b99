// Two accesses of different threads, at least one of them a write and one of them weak, race unless one of them happens
// before the other: a barrier of their block lies between them, or the first thread's fence, a strong access of it
// (atomic or volatile), a strong access of the second thread that reads it, and a fence of the second thread. Fences
// are cumulative, as in the memory model of PTX: they pass on what happened before in other threads.
#include <algorithm>
#include <cstdio>
#include <unordered_map>

#include "grid.h"
#include "shadow.h"

namespace emu {
namespace {

std::unordered_map<uintptr_t, Known> left_at;  // by strong writes, at their addresses
int launch_of_left = 0;

Known& left(const void* at) {
  if (launch_of_left != launch_count) left_at.clear();
  launch_of_left = launch_count;
  return left_at[reinterpret_cast<uintptr_t>(at)];
}

template <typename Map>
void join(Map& own, const Map& other) {
  for (const auto& [key, value] : other) own[key] = std::max(own[key], value);
}

Known joined(const Known& a, const Known& b) {
  if (a == b || b == nullptr) return a;
  if (a == nullptr) return b;
  auto both = std::make_shared<History>(*a);
  join(both->phases, b->phases);
  join(both->threads, b->threads);
  return both;
}

bool happened_before(const Access& access, const Fiber& fiber) {
  if (access.block == fiber.block->index && access.phase < fiber.block->phase) return true;
  if (fiber.known == nullptr) return false;
  const auto phase = fiber.known->phases.find(access.block);
  if (phase != fiber.known->phases.end() && phase->second > access.phase) return true;
  const auto thread = fiber.known->threads.find({access.block, access.thread});
  return thread != fiber.known->threads.end() && thread->second > access.fences;
}

bool conflict(const Access& a, const Access& b) {
  return (a.bytes & b.bytes) && (a.write || b.write) && !(a.strong && b.strong);
}

bool same_thread(const Access& a, const Access& b) { return a.block == b.block && a.thread == b.thread; }

bool same_kind(const Access& a, const Access& b) {
  return a.bytes == b.bytes && a.write == b.write && a.strong == b.strong;
}

[[noreturn]] void fail_race(const Access& now, const Access& before, uintptr_t word, const void* code) {
  char text[200];
  snprintf(text, sizeof text, "a race: a %s%s at %#zx, which block %d, thread %d has %s with nothing in between",
           now.strong ? "strong " : "", now.write ? "write" : "read", size_t(word), before.block, int(before.thread),
           before.write ? "written" : "read");
  fail(text, code);
}

}  // namespace

void check_race(Shadow& shadow, uintptr_t word, uint8_t bytes, bool write, bool strong, const void* code) {
  const Fiber& fiber = *current;
  const Access now{
      launch_count, fiber.block->index, fiber.block->phase, fiber.fences, uint16_t(fiber.thread), bytes, write, strong};
  Access* all = shadow.of_word(word);
  Access* place = nullptr;
  for (Access* old = all; old < all + kRemembered; ++old) {
    if (old->launch != now.launch) {  // free, as a launch ends before the next one starts
      if (place == nullptr) place = old;
    } else if (same_thread(*old, now)) {
      if (same_kind(*old, now)) place = old;
    } else if (conflict(*old, now)) {
      if (!happened_before(*old, fiber)) fail_race(now, *old, word, code);
      if (write && (old->bytes & ~bytes) == 0 && place == nullptr) place = old;  // who races with it races with `now`
    }
  }
  *(place != nullptr ? place : all + draw(kRemembered)) = now;
}

void on_fence(Fiber& fiber) {
  fiber.known = joined(fiber.known, fiber.received);
  ++fiber.fences;
  auto all = fiber.known ? std::make_shared<History>(*fiber.known) : std::make_shared<History>();
  all->phases[fiber.block->index] = fiber.block->phase;
  all->threads[{fiber.block->index, fiber.thread}] = fiber.fences;
  fiber.released = all;
}

void on_barrier(Block& block) {
  Known all;
  for (const Fiber* fiber : block.fibers) all = joined(all, fiber->known);
  for (Fiber* fiber : block.fibers) fiber->known = all;
}

void on_atomic(Fiber& fiber, const void* at, size_t bytes, const void* code) {
  check_access(at, bytes, true, true, code);
  Known& here = left(at);
  fiber.received = joined(fiber.received, here);
  here = joined(here, fiber.released);  // read-modify-write: what others left stays
}

void on_volatile(const void* at, bool write) {
  Known& here = left(at);
  if (write)
    here = current->released;
  else
    current->received = joined(current->received, here);
}

}  // namespace emu
