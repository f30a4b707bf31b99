// For short rows: a team of neighbouring threads per row, as many as the row can use.
#pragma once
#include "launch.h"

namespace pyengm::cuda {

// Threads of a team: a power of two, at most `most`.
inline int team_size(int64_t wanted, int most) {
  int size = 1;
  while (size < wanted && size < most) size *= 2;
  return size;
}

// Runs kernel<<<>>>(team, args...) with a team per row.
template <typename... Params, typename... Args>
void launch_teams(Launch at, int64_t rows, int team, const char* name, void (*kernel)(int, Params...), Args... args) {
  const int64_t teams = kThreads / team;
  launch_blocks(at, (rows + teams - 1) / teams, kThreads, name, kernel, team, args...);
}

}  // namespace pyengm::cuda
