// A grid that runs on one core: blocks and warps, whose threads are fibers.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace emu {

// What has happened in other threads before the present operation of a thread.
struct History {
  std::map<int, uint32_t> phases;                   // block -> all accesses of its threads before this phase
  std::map<std::pair<int, int>, uint32_t> threads;  // (block, thread) -> its accesses before this fence
};
using Known = std::shared_ptr<const History>;

enum class State : uint8_t { kReady, kAtBarrier, kInCollective, kEnded };

struct Block;

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  State state = State::kReady;
  int thread = 0;
  Block* block = nullptr;
  const char* file = "";  // where it waits
  int line = 0;
  unsigned collectives = 0;  // that it has passed
  uint32_t fences = 1;
  Known known;     // before this thread's next access
  Known received;  // read by strong accesses since the last fence, which makes it known
  Known released;  // what strong writes of this thread give to others: known at its last fence
};

struct Warp {
  struct Collective {
    unsigned arrived = 0, mask = 0;
    int kind = 0, line = 0;
    uint64_t values[32] = {};
  };
  unsigned ended = 0;  // lanes
  Collective two[2];   // a lane may enter the next one while others have not left the last
};

struct SharedArray {
  const void* key;
  char* start;
  size_t bytes;
  std::shared_ptr<void> shadow;  // of memory_checks.cpp
};

struct Block {
  int index = 0, waiting = 0, ended = 0;
  uint32_t phase = 1;  // barriers that its threads have passed, and 1
  const char* file = nullptr;
  int line = 0;  // of the barrier at which threads wait
  std::vector<Fiber*> fibers, ready, asleep;
  std::vector<Warp> warps;
  std::vector<SharedArray> shared;
  std::unique_ptr<char[]> arena;
  size_t arena_used = 0;
};

constexpr size_t kStackBytes = 64 << 10, kArenaBytes = 48 << 10;

struct Configuration {
  uint64_t seed = 1;
  int resident = 0;      // blocks that run at a time; 0: drawn for each launch
  int processors = 4;    // that the device reports
  int largest_grid = 0;  // blocks of a launch at most; 0: as many as the launch asks for
  int last_blocks = 0;   // only so many blocks run, those with the largest indices; 0: all
};

struct Launch {
  const char* kernel;
  int blocks, threads;
  void (*body)(void*);
  void* closure;
  size_t closure_bytes;
  std::vector<std::unique_ptr<Block>> running;
  bool progress = false;  // since a thread slept
  bool yields = false;    // whether another block may go on now
  std::string error;
};

extern Configuration configuration;
extern Launch* grid;    // the launch that runs, or null
extern Fiber* current;  // the thread that runs, or null in the scheduler
extern int launch_count;

uint32_t draw(uint32_t below);
[[noreturn]] void fail(const std::string& what, const void* code = nullptr);  // ends the launch
void make_ready(Fiber* fiber);
void wait(State state, const char* file, int line);  // until make_ready
void back_to_scheduler();
std::string source_line(const void* code);

// fibers.cpp
Fiber* new_fiber(void (*start)());
void recycle(Fiber* fiber);
void release_stacks();      // of all fibers that no launch uses
void resume(Fiber* fiber);  // returns when the fiber gives control back
void suspend(Fiber* fiber);

// memory_checks.cpp and race_checks.cpp; without checks nothing is done
#ifdef EMU_CHECKED
void check_access(const void* at, size_t bytes, bool write, bool strong, const void* code);
// An access of translated PTX. Nobody may write what is read as a constant.
void check_instruction(const void* at, size_t bytes, bool write, bool strong, bool constant, const void* code);
void constant_memory(const void* at, size_t bytes);  // a table that every kernel may read
void on_allocate(const void* at, size_t bytes);
void on_fill(const void* at, size_t bytes);
void on_fence(Fiber& fiber);
void on_barrier(Block& block);
void on_atomic(Fiber& fiber, const void* at, size_t bytes, const void* code);
void throw_host_error();
#else
inline void check_access(const void*, size_t, bool, bool, const void*) {}
inline void check_instruction(const void*, size_t, bool, bool, bool, const void*) {}
inline void constant_memory(const void*, size_t) {}
inline void on_allocate(const void*, size_t) {}
inline void on_fill(const void*, size_t) {}
inline void on_fence(Fiber&) {}
inline void on_barrier(Block&) {}
inline void on_atomic(Fiber&, const void*, size_t, const void*) {}
inline void throw_host_error() {}
#endif

}  // namespace emu

#define EMU_EXPORT extern "C" __attribute__((visibility("default")))
