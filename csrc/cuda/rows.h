// Kernels on n rows of d elements: 16-byte accesses, and sums in an order given by d and the type.
//
// The products of one access are summed in pairs of float32 (float_pairs.h), accesses in float64, which for every
// element would take longer than memory does on most GPUs (bench/results/roofline.md). With |a| and |b| the L2 norms of
// the elements, a sum of products of a and b has an error below 2^-33 |a| |b|, and in general one near 2^-44: a thread
// rounds `low` at most 64 times, and it is at most 2^-16 of the largest product of each access.
//
// A row of moderate length is the work of one block. A longer one is cut into pieces, so that a few large images use
// the whole GPU; pieces are of so many bytes, as it is bytes that hide the tickets, fences and barriers of a piece.
// Where a step follows the sums, blocks draw sums and steps in an order in which the step of a row comes a few rows
// after its sums: the elements that were summed are then still in the level-two cache.
#pragma once
#include <algorithm>
#include <type_traits>

#include "../products.h"
#include "../storage.h"
#include "float_pairs.h"
#include "launch.h"

namespace pyengm::cuda {

constexpr int kRowThreads = 512;
constexpr int64_t kPieceBytes = 32768;  // of a row of more than two pieces; shorter ones are the work of one block
constexpr int64_t kBlocksAhead = 256;   // about as many as run at a time

template <typename T>
constexpr int kVector = 16 / sizeof(T);  // elements of one access

template <typename T>
constexpr int kUnroll = sizeof(T) == 2 ? 1 : 2;  // of loops over vectors, as far as there are registers

template <typename T>
struct Vector {
  T v[kVector<T>];
};

template <typename T>
__device__ __forceinline__ bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// The next kVector elements, in one access where the address allows it.
template <typename T>
__device__ __forceinline__ Vector<T> load_vector(const T* p, bool wide) {
  Vector<T> out;
  if (wide) {
    const uint4 raw = *reinterpret_cast<const uint4*>(p);
    memcpy(&out, &raw, 16);
  } else {
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) out.v[j] = p[j];
  }
  return out;
}

template <typename T>
__device__ __forceinline__ void store_vector(T* p, const Vector<T>& vector) {
  uint4 raw;
  memcpy(&raw, &vector, 16);
  *reinterpret_cast<uint4*>(p) = raw;
}

// A row as pieces of `length` elements, the last one perhaps shorter; each is aligned like the row. Within a piece
// indices are of 32 bits, which saves registers.
struct Cut {
  int64_t pieces, length;

  Cut(int64_t d, int64_t piece) {
    const int64_t wanted = (d + piece - 1) / piece;
    length = ((d + wanted - 1) / wanted + 15) / 16 * 16;
    pieces = (d + length - 1) / length;
  }
  __device__ int size(int64_t piece, int64_t d) const { return piece + 1 < pieces ? length : d - piece * length; }
};

template <typename T>
Cut cut_row(int64_t d) {
  constexpr int64_t piece = kPieceBytes / int64_t(sizeof(T));
  return Cut(d, d <= 2 * piece ? 2 * piece : piece);
}

template <int Width>
__device__ __forceinline__ double team_sum(double value) {  // over Width neighbouring lanes, in each of them
#pragma unroll
  for (int distance = Width / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;  // the same in every lane: a + b and b + a round alike
}

// Sums over the block, in every thread. It is a barrier: no thread returns before all have entered.
template <int Count>
__device__ __forceinline__ void block_sum(double* sums) {
  constexpr int kWarps = kRowThreads / 32;
  __shared__ double warps[Count][kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();  // the sums of the previous row have been read
#pragma unroll
  for (int k = 0; k < Count; ++k) {
    const double sum = team_sum<32>(sums[k]);
    if (lane == 0) warps[k][warp] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < Count; ++k) sums[k] = team_sum<kWarps>(warps[k][lane % kWarps]);
}

// a - b in float64. Float32 holds every difference of Half: its pair is enough, which leaves registers to others.
template <typename T>
__device__ __forceinline__ double wide_difference(const FloatPair& pair, T a, T b) {
  if constexpr (std::is_same_v<T, Half>)
    return pair.low == pair.low ? double(pair.high) + double(pair.low) : double(pair.high);  // inf has no second float
  else
    return double(widen(a)) - double(widen(b));
}

// Adds the terms of one access to sums and to `low` of pairs.
template <typename Terms, typename T>
__device__ __forceinline__ void add_vector(double* sums, PairSum* pairs, const Vector<T>& grad, const Vector<T>& x_adv,
                                           const Vector<T>& x) {
  constexpr int width = kVector<T>;
  if constexpr (std::is_same_v<T, double>) {
#pragma unroll
    for (int j = 0; j < width; ++j) Terms::add(sums, grad.v[j], x_adv.v[j] - x.v[j]);
  } else {
    float wide[width];
    FloatPair offset[width] = {};
#pragma unroll
    for (int j = 0; j < width; ++j) {
      wide[j] = widen(grad.v[j]);
      if constexpr (Terms::offset) offset[j] = exact_difference(widen(x_adv.v[j]), widen(x.v[j]));
    }
    add_in_pairs<Terms>(sums, pairs, wide, offset, [&] {
#pragma unroll
      for (int j = 0; j < width; ++j) Terms::add(sums, double(wide[j]), wide_difference(offset[j], x_adv.v[j], x.v[j]));
    });
  }
}

// sums (Terms::count) over `size` elements, in every thread; x_adv and x are read only for Terms::offset.
template <typename Terms, typename T>
__device__ __forceinline__ void sum_piece(double* sums, const T* grad, const T* x_adv, const T* x, int size) {
  constexpr int width = kVector<T>;
  const bool wide = aligned(grad) && (!Terms::offset || (aligned(x_adv) && aligned(x)));
#pragma unroll
  for (int k = 0; k < Terms::count; ++k) sums[k] = 0.0;
  PairSum pairs[Terms::count];
  const auto add_vectors = [&](auto each_wide) {
#pragma unroll kUnroll < T>
    for (int i = width * threadIdx.x; i + width <= size; i += width * kRowThreads) {
      const Vector<T> g = load_vector(grad + i, decltype(each_wide)::value);
      Vector<T> a{}, c{};
      if constexpr (Terms::offset) {
        a = load_vector(x_adv + i, decltype(each_wide)::value);
        c = load_vector(x + i, decltype(each_wide)::value);
      }
      add_vector<Terms>(sums, pairs, g, a, c);
    }
  };
  if (wide)  // a loop each: the accesses that the other would skip take the time of many elements
    add_vectors(std::true_type());
  else
    add_vectors(std::false_type());
#pragma unroll
  for (int k = 0; k < Terms::count; ++k) sums[k] += double(pairs[k].low);
  if (const int i = size / width * width + threadIdx.x; i < size) {
    double offset = 0.0;
    if constexpr (Terms::offset) offset = double(widen(x_adv[i])) - double(widen(x[i]));
    Terms::add(sums, double(widen(grad[i])), offset);
  }
  block_sum<Terms::count>(sums);
}

// One vector's step(x_adv, grad, x), which changes arrays of the type of arithmetic.
template <typename T, typename Step>
__device__ __forceinline__ void step_vector(T* x_adv, const T* grad, const T* x, const Step& step) {
  constexpr int width = kVector<T>;
  Vector<T> a = load_vector(x_adv, true);
  const Vector<T> g = load_vector(grad, true), c = load_vector(x, true);
  Real<T> values[width], gradients[width], centers[width];
#pragma unroll
  for (int j = 0; j < width; ++j) {
    values[j] = widen(a.v[j]);
    gradients[j] = widen(g.v[j]);
    centers[j] = widen(c.v[j]);
  }
  step(values, gradients, centers);
#pragma unroll
  for (int j = 0; j < width; ++j) a.v[j] = narrow<T>(values[j]);
  store_vector(x_adv, a);
}

// x_adv <- step(x_adv, grad, x): single elements up to the first aligned one, then vectors, then single elements.
template <typename T, typename Step>
__device__ __forceinline__ void step_piece(T* __restrict__ x_adv, const T* __restrict__ grad, const T* __restrict__ x,
                                           int size, const Step& step) {
  constexpr int width = kVector<T>;
  const auto single = [&](int i) {
    Real<T> value[1] = {widen(x_adv[i])}, gradient[1] = {widen(grad[i])}, center[1] = {widen(x[i])};
    step(value, gradient, center);
    x_adv[i] = narrow<T>(value[0]);
  };
  const auto phase = [](const T* p) { return reinterpret_cast<uintptr_t>(p) % 16; };
  const bool together = phase(x_adv) == phase(grad) && phase(x_adv) == phase(x);
  const int lead = (16 - phase(x_adv)) % 16 / sizeof(T);
  const int head = together && lead < size ? lead : size;
  const int vectors = (size - head) / width;
  for (int i = threadIdx.x; i < head; i += kRowThreads) single(i);
#pragma unroll kUnroll < T>
  for (int q = threadIdx.x; q < vectors; q += kRowThreads) {
    const int i = head + q * width;
    step_vector(x_adv + i, grad + i, x + i, step);
  }
  for (int i = head + vectors * width + threadIdx.x; i < size; i += kRowThreads) single(i);
}

// The interface of an op on rows. An op that only sums sets `steps` to false and may return anything from decide.
//   using Terms = ...                                the terms of the sums
//   static constexpr bool steps                      whether x_adv changes
//   bool skips(row)                                  whether the row is neither read nor written
//   Move decide(row, sums)                           called once a row, by one thread; writes the values of the row
//   static bool moves(move)                          whether the row takes its step
//   void step_elements(x_adv, grad, x, move)         the step of neighbouring elements: arrays of Real<T>
template <typename Op>
using MoveOf = decltype(std::declval<const Op&>().decide(0, nullptr));

// A block per row. A: T, or const T where nothing changes.
template <typename Op, typename A, typename T>
__global__ void __launch_bounds__(kRowThreads, 2) whole_rows(Op op, A* __restrict__ x_adv, const T* __restrict__ grad,
                                                             const T* __restrict__ x, int64_t n, int64_t d) {
  __shared__ MoveOf<Op> decided;
  for (int64_t row = blockIdx.x; row < n; row += gridDim.x) {
    if (op.skips(row)) continue;
    A* a = x_adv + row * d;
    const T *g = grad + row * d, *c = x + row * d;
    double sums[Op::Terms::count];
    sum_piece<typename Op::Terms>(sums, g, static_cast<const T*>(a), c, d);
    if (threadIdx.x == 0) decided = op.decide(row, sums);
    if constexpr (Op::steps) {
      __syncthreads();
      const MoveOf<Op> move = decided;
      if (op.moves(move))
        step_piece(a, g, c, d, [&](auto& from, auto& gradients, auto& centers) {
          op.step_elements(from, gradients, centers, move);
        });
    }
  }
}

// The memory through which the blocks of a row exchange sums and moves. The first two arrays start as zeros.
struct RowWorkspace {
  unsigned long long* ticket;
  unsigned *arrived, *decided;  // (n): pieces that have been summed; whether the move was written
  void* moves;                  // (n)
  double* sums;                 // (n, pieces, Terms::count)

  static constexpr int64_t kMove = 32;  // bytes of a move at most

  static int64_t zeros(int64_t n) { return (16 + 8 * n + 15) / 16 * 16; }
  static int64_t bytes(int64_t n, const Cut& cut) {
    return cut.pieces == 1 ? 0 : zeros(n) + n * (kMove + cut.pieces * int64_t(3 * sizeof(double)));
  }
  RowWorkspace(void* memory, int64_t n) {
    char* start = static_cast<char*>(memory);
    ticket = reinterpret_cast<unsigned long long*>(start);
    arrived = reinterpret_cast<unsigned*>(start + 16);
    decided = arrived + n;
    moves = start + zeros(n);
    sums = reinterpret_cast<double*>(start + zeros(n) + kMove * n);
  }
};

// Several blocks per row. Blocks draw tickets in order, and a block waits only for holders of earlier tickets, which
// are running: there is no deadlock, whatever number of blocks fits on the GPU.
template <typename Op, typename A, typename T>
__global__ void __launch_bounds__(kRowThreads, 2)
    cut_rows(Op op, A* __restrict__ x_adv, const T* __restrict__ grad, const T* __restrict__ x, int64_t n, int64_t d,
             Cut cut, int64_t lag, int64_t tickets, RowWorkspace workspace) {
  using Move = MoveOf<Op>;
  constexpr int count = Op::Terms::count;
  static_assert(sizeof(Move) <= RowWorkspace::kMove && count <= 3);
  __shared__ unsigned long long drawn;
  __shared__ bool is_last;
  __shared__ Move shared;
  Move* moves = static_cast<Move*>(workspace.moves);
  const int64_t group = (Op::steps ? 2 : 1) * cut.pieces;
  for (;;) {
    __syncthreads();  // all have read the shared values
    if (threadIdx.x == 0) drawn = atomicAdd(workspace.ticket, 1ull);
    __syncthreads();
    if (int64_t(drawn) >= tickets) return;
    int64_t row = int64_t(drawn) / group, piece = int64_t(drawn) % group;
    const bool steps = piece >= cut.pieces;
    if (steps) {
      row -= lag;
      piece -= cut.pieces;
    }
    if (row < 0 || row >= n || op.skips(row)) continue;
    const int64_t at = row * d + piece * cut.length;
    const int size = cut.size(piece, d);
    if (!steps) {
      double sums[count];
      sum_piece<typename Op::Terms>(sums, grad + at, static_cast<const T*>(x_adv + at), x + at, size);
      if (threadIdx.x == 0) {
        for (int k = 0; k < count; ++k) workspace.sums[(row * cut.pieces + piece) * count + k] = sums[k];
        __threadfence();
        is_last = atomicAdd(workspace.arrived + row, 1u) + 1 == cut.pieces;
        __threadfence();
      }
      __syncthreads();
      if (!is_last || threadIdx.x >= 32) continue;
      for (int k = 0; k < count; ++k) {
        sums[k] = 0.0;
        for (int64_t p = threadIdx.x; p < cut.pieces; p += 32)
          sums[k] += workspace.sums[(row * cut.pieces + p) * count + k];
        sums[k] = team_sum<32>(sums[k]);
      }
      if (threadIdx.x == 0) {
        moves[row] = op.decide(row, sums);
        __threadfence();
        atomicExch(workspace.decided + row, 1u);
      }
    } else if constexpr (Op::steps) {
      if (threadIdx.x == 0) {
        while (*static_cast<volatile unsigned*>(workspace.decided + row) == 0) __nanosleep(100);
        __threadfence();
        shared = moves[row];
      }
      __syncthreads();
      const Move move = shared;
      if (op.moves(move))
        step_piece(x_adv + at, grad + at, x + at, size, [&](auto& from, auto& gradients, auto& centers) {
          op.step_elements(from, gradients, centers, move);
        });
    }
  }
}

// workspace: RowWorkspace::bytes of memory.
template <typename Op, typename A, typename T>
void launch_rows(Launch at, const char* name, const Op& op, A* x_adv, const T* grad, const T* x, int64_t n, int64_t d,
                 void* workspace) {
  const Cut cut = cut_row<T>(d);
  if (cut.pieces == 1) return launch_blocks(at, n, kRowThreads, name, whole_rows<Op, A, T>, op, x_adv, grad, x, n, d);
  DeviceGuard guard(at.device);
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, at.device), name);
  check(cudaMemsetAsync(workspace, 0, RowWorkspace::zeros(n), static_cast<cudaStream_t>(at.stream)), name);
  const int64_t lag = Op::steps ? 1 + kBlocksAhead / (2 * cut.pieces) : 0;
  const int64_t tickets = (n + lag) * (Op::steps ? 2 : 1) * cut.pieces;
  launch_blocks(at, std::min<int64_t>(tickets, 4 * processors), kRowThreads, name, cut_rows<Op, A, T>, op, x_adv, grad,
                x, n, d, cut, lag, tickets, RowWorkspace(workspace, n));
}

}  // namespace pyengm::cuda
