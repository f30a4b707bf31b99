// The scheduler: a thread runs until it waits; which thread and which block runs next is drawn at random from the seed.
#include "grid.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <mutex>
#include <stdexcept>

#include "include/cuda_runtime.h"

namespace emu {

Configuration configuration;
Launch* grid = nullptr;
Fiber* current = nullptr;
int launch_count = 0;

namespace {

constexpr int kMaxThreads = 1024, kMaxIdleRounds = 2'000'000;
constexpr int kResident[] = {1, 2, 3, 8};
std::mutex one_launch_at_a_time;
uint64_t random_state = 1;

std::string place(const Fiber& fiber) {
  const char* name = strrchr(fiber.file, '/');
  return "block " + std::to_string(fiber.block->index) + ", thread " + std::to_string(fiber.thread) + " at " +
         (name ? name + 1 : fiber.file) + ":" + std::to_string(fiber.line);
}

// The first threads that wait, one a line.
std::string waiting_threads() {
  std::string text;
  int shown = 0;
  for (auto& block : grid->running)
    for (Fiber* fiber : block->fibers)
      if (fiber->state != State::kEnded && shown++ < 6) text += "\n  " + place(*fiber);
  return text;
}

void thread_main() {
  grid->body(grid->closure);
  Fiber& fiber = *current;
  Block& block = *fiber.block;
  Warp& warp = block.warps[fiber.thread / 32];
  fiber.state = State::kEnded;
  ++block.ended;
  warp.ended |= 1u << fiber.thread % 32;
  grid->progress = true;
  if (block.waiting > 0)
    fail("a thread ends while others of its block wait at the barrier in line " + std::to_string(block.line));
  for (auto& collective : warp.two)
    if (collective.arrived && (collective.mask & warp.ended))
      fail("a thread ends while its warp waits for it in the collective of line " + std::to_string(collective.line));
  back_to_scheduler();
}

std::unique_ptr<Block> new_block(int index) {
  throw_host_error();
  auto block = std::make_unique<Block>();
  block->index = index;
  block->warps.resize((grid->threads + 31) / 32);
  block->arena.reset(new char[kArenaBytes]);
  for (int thread = 0; thread < grid->threads; ++thread) {
    Fiber* fiber = new_fiber(&thread_main);
    fiber->thread = thread;
    fiber->block = block.get();
    block->fibers.push_back(fiber);
    block->ready.push_back(fiber);
  }
  return block;
}

// Runs threads of a block until none can go on, or it is another block's turn.
void run_block(Block& block) {
  grid->yields = false;
  while (!block.ready.empty() && !grid->yields && grid->error.empty()) {
    const size_t pick = draw(uint32_t(block.ready.size()));
    current = block.ready[pick];
    block.ready[pick] = block.ready.back();
    block.ready.pop_back();
    resume(current);
  }
}

// Wakes the threads that sleep; it counts how often they wake without anything else having happened.
void wake(Block& block, int& idle) {
  idle = grid->progress ? 0 : idle + 1;
  grid->progress = false;
  if (idle > kMaxIdleRounds) grid->error = "threads wait in a loop for what no thread does:" + waiting_threads();
  for (Fiber* fiber : block.asleep) make_ready(fiber);
  block.asleep.clear();
}

bool none_can_run() {
  for (auto& block : grid->running)
    if (!block->ready.empty() || !block->asleep.empty()) return false;
  return true;
}

void schedule(size_t resident) {
  const int first = configuration.last_blocks > 0 ? max(0, grid->blocks - configuration.last_blocks) : 0;
  int next = first, idle = 0;
  auto& running = grid->running;
  while (grid->error.empty() && (next < grid->blocks || !running.empty())) {
    while (running.size() < resident && next < grid->blocks) running.push_back(new_block(next++));
    const size_t pick = draw(uint32_t(running.size()));
    Block& block = *running[pick];
    if (block.ready.empty() && !block.asleep.empty()) wake(block, idle);
    if (none_can_run()) {
      grid->error = "deadlock; there wait:" + waiting_threads();
      return;
    }
    run_block(block);
    if (block.ended < grid->threads) continue;
    for (Fiber* fiber : block.fibers) recycle(fiber);
    running.erase(running.begin() + long(pick));
  }
}

}  // namespace

uint32_t draw(uint32_t below) {  // xorshift64
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return uint32_t((random_state >> 32) * below >> 32);
}

std::string source_line(const void* code) {
  Dl_info info;
  if (code == nullptr || !dladdr(code, &info)) return "";
  char command[600], line[300];
  const auto offset = static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase) - 1;
  snprintf(command, sizeof command, "addr2line -Cpie '%s' 0x%zx 2>/dev/null", info.dli_fname, size_t(offset));
  std::string text;
  if (FILE* pipe = popen(command, "r")) {
    while (fgets(line, sizeof line, pipe)) text += std::string("\n  ") + line;
    pclose(pipe);
  }
  return text;
}

void fail(const std::string& what, const void* code) {
  if (grid->error.empty())
    grid->error = what + "\n  in block " + std::to_string(current->block->index) + " of " +
                  std::to_string(grid->blocks) + ", thread " + std::to_string(current->thread) + source_line(code);
  back_to_scheduler();
  __builtin_unreachable();  // the scheduler resumes no thread after an error
}

void make_ready(Fiber* fiber) {
  fiber->state = State::kReady;
  fiber->block->ready.push_back(fiber);
}

void back_to_scheduler() {
  Fiber* self = current;
  current = nullptr;
  suspend(self);
}

void wait(State state, const char* file, int line) {
  current->state = state;
  current->file = file;
  current->line = line;
  back_to_scheduler();
}

void run(const char* kernel, int blocks, int threads, void (*body)(void*), void* closure, size_t closure_bytes) {
  std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  if (blocks < 1 || threads < 1 || threads > kMaxThreads) throw std::runtime_error("invalid configuration argument");
  if (configuration.largest_grid > 0) blocks = min(blocks, configuration.largest_grid);
  ++launch_count;
  random_state = (configuration.seed + uint64_t(launch_count)) * 0x9E3779B97F4A7C15u | 1;  // never 0
  for (int k = 0; k < 8; ++k) draw(2);
  Launch launch{kernel, blocks, threads, body, closure, closure_bytes, {}, false, false, {}};
  grid = &launch;
  schedule(size_t(configuration.resident > 0 ? configuration.resident : kResident[draw(4)]));
  for (auto& block : launch.running)
    for (Fiber* fiber : block->fibers) recycle(fiber);
  grid = nullptr;
  if (!launch.error.empty()) throw std::runtime_error("emulated CUDA: " + launch.error + "\n  in " + kernel);
}

}  // namespace emu

EMU_EXPORT void emu_configure(uint64_t seed, int resident, int processors, int largest_grid, int last_blocks) {
  emu::configuration = {seed, resident, processors, largest_grid, last_blocks};
  emu::launch_count = 0;
}

EMU_EXPORT void emu_release_stacks() { emu::release_stacks(); }
