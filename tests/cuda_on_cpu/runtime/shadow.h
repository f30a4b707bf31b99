// What the checks remember of a piece of memory.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

namespace emu {

constexpr int kRemembered = 6;  // accesses of each 8 bytes

struct Access {
  int launch, block;
  uint32_t phase, fences;  // of the thread at that time
  uint16_t thread;
  uint8_t bytes;  // a bit for each of the 8
  uint8_t write : 1, strong : 1;
};

struct Shadow {
  const uintptr_t start, end;
  const bool writable;
  std::vector<uint8_t> written;  // a flag for each byte; empty: every byte has a value
  Access* const accesses;        // kRemembered for each 8 bytes; calloc touches no memory before it is used

  Shadow(uintptr_t start, size_t bytes, bool writable, bool has_values)
      : start(start),
        end(start + bytes),
        writable(writable),
        written(has_values ? 0 : bytes),
        accesses(static_cast<Access*>(calloc((bytes / 8 + 2) * kRemembered, sizeof(Access)))) {}
  ~Shadow() { free(accesses); }
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;

  bool contains(uintptr_t at, size_t bytes) const { return at >= start && at + bytes <= end; }
  Access* of_word(uintptr_t word) const { return accesses + (word / 8 - start / 8) * kRemembered; }
};

void check_race(Shadow& shadow, uintptr_t word, uint8_t bytes, bool write, bool strong, const void* code);
void on_volatile(const void* at, bool write);

}  // namespace emu
