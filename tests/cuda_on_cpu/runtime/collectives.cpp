// What device code calls: barriers, shuffles, votes, fences, atomics, shared memory.
#include <cstdlib>
#include <cstring>

#include "grid.h"
#include "include/cuda_runtime.h"

namespace emu {
namespace {

constexpr size_t kGap = 64;  // bytes between shared arrays, which belong to none
constexpr int kBallot = 9;   // kind of a collective; those of shuffles are the bytes of a value

unsigned lanes_of(const Fiber& fiber) {
  const int lanes = grid->threads - fiber.thread / 32 * 32;
  return lanes >= 32 ? ~0u : (1u << lanes) - 1;
}

void check_mask(const Fiber& fiber, const Warp& warp, unsigned mask, int partner, int line) {
  const std::string where = ", line " + std::to_string(line);
  if (!(mask >> fiber.thread % 32 & 1)) fail("a lane is not in the mask of its own collective" + where);
  if (mask & ~lanes_of(fiber)) fail("a mask has lanes that do not exist" + where);
  if (mask & warp.ended) fail("a mask has lanes that have ended" + where);
  if (partner > 31 || !(mask >> partner & 1)) fail("a lane reads one that is not in the mask" + where);
}

// Waits until all lanes of the mask have come, and returns the collective.
const Warp::Collective& meet(unsigned mask, uint64_t value, int partner, int kind, const char* file, int line) {
  Fiber& fiber = *current;
  Warp& warp = fiber.block->warps[fiber.thread / 32];
  Warp::Collective& collective = warp.two[fiber.collectives++ % 2];
  check_mask(fiber, warp, mask, partner, line);
  if (collective.arrived && (collective.mask != mask || collective.kind != kind || collective.line != line))
    fail("lanes of a warp are in two collectives, lines " + std::to_string(collective.line) + " and " +
         std::to_string(line));
  collective.mask = mask;
  collective.kind = kind;
  collective.line = line;
  collective.values[fiber.thread % 32] = value;
  collective.arrived |= 1u << fiber.thread % 32;
  if (collective.arrived != mask) {
    wait(State::kInCollective, file, line);
    return collective;
  }
  collective.arrived = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (lane != fiber.thread % 32 && mask >> lane & 1) make_ready(fiber.block->fibers[fiber.thread / 32 * 32 + lane]);
  return collective;
}

}  // namespace

dim3 thread_idx() noexcept { return {unsigned(current->thread), 0, 0}; }
dim3 block_idx() noexcept { return {unsigned(current->block->index), 0, 0}; }
dim3 block_dim() noexcept { return {unsigned(grid->threads), 1, 1}; }
dim3 grid_dim() noexcept { return {unsigned(grid->blocks), 1, 1}; }
int multiprocessors() noexcept { return configuration.processors; }

void barrier(const char* file, int line) noexcept {
  Block& block = *current->block;
  if (block.ended > 0) fail("a barrier that some threads of the block never reach, line " + std::to_string(line));
  if (block.waiting > 0 && (block.file != file || block.line != line))
    fail("threads of a block are at two barriers, lines " + std::to_string(block.line) + " and " +
         std::to_string(line));
  block.file = file;
  block.line = line;
  if (++block.waiting < grid->threads) return wait(State::kAtBarrier, file, line);
  block.waiting = 0;
  on_barrier(block);
  ++block.phase;
  for (Fiber* fiber : block.fibers) make_ready(fiber);
  grid->yields = draw(2) == 0;
  back_to_scheduler();  // the last thread to arrive is not the first to go on
}

uint64_t exchange(unsigned mask, uint64_t bits, int distance, int kind, const char* file, int line) noexcept {
  const int partner = current->thread % 32 ^ distance;
  return meet(mask, bits, partner, kind | distance << 8, file, line).values[partner];
}

unsigned ballot(unsigned mask, bool vote, const char* file, int line) noexcept {
  const auto& collective = meet(mask, vote, current->thread % 32, kBallot, file, line);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) votes |= unsigned(collective.values[lane]) << lane;
  return votes;
}

void fence() noexcept { on_fence(*current); }

void sleep() noexcept {  // until the other blocks have had a turn
  current->block->asleep.push_back(current);
  grid->yields = true;
  back_to_scheduler();
}

void* shared_array(const void* key, size_t bytes) noexcept {
  Block& block = *current->block;
  for (const SharedArray& array : block.shared)
    if (array.key == key) return array.start;
  char* start = block.arena.get() + block.arena_used + kGap;
  start += (kGap - reinterpret_cast<uintptr_t>(start) % kGap) % kGap;
  block.arena_used = size_t(start - block.arena.get()) + bytes;
  if (block.arena_used > kArenaBytes) fail("more than 48 KB of shared memory");
  memset(start, draw(2) ? 0xff : 0x7b, bytes);  // nan, or large numbers
  block.shared.push_back({key, start, bytes, nullptr});
  return start;
}

char* shared_memory() noexcept { return current->block->arena.get(); }

unsigned long long atomic(void* at, int bytes, bool add, unsigned long long operand) noexcept {
  const void* code = __builtin_return_address(0);
  if (reinterpret_cast<uintptr_t>(at) % size_t(bytes)) fail("a misaligned atomic", code);
  on_atomic(*current, at, size_t(bytes), code);
  unsigned long long old = 0;
  memcpy(&old, at, size_t(bytes));
  const unsigned long long now = add ? old + operand : operand;
  memcpy(at, &now, size_t(bytes));
  grid->progress = true;
  if (draw(2)) {  // another block may go on before this thread uses the old value
    grid->yields = true;
    make_ready(current);
    back_to_scheduler();
  }
  return old;
}

void* allocate(size_t bytes) {
  void* memory = malloc(bytes);
  on_allocate(memory, bytes);
  return memory;
}

void fill(void* at, int value, size_t bytes) {
  on_fill(at, bytes);
  memset(at, value, bytes);
}

}  // namespace emu
