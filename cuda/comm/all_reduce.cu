// The sum of a message over ranks.
//
// Shapes    see AllReduceParams; x and out start at multiples of 16 bytes.
// Parallel  a thread a vector of 16 bytes; a block takes several in turn where the message is long.
// Bound     latency: one way over the link (two with two shots), and what the launch takes. Longer
//           messages: the link, 2 * count * 2 B to each other rank (one shot).
// Numerics  added up in rank order in float32, rounded once: the same bits on every rank.
#include <algorithm>

#include "comm/all_reduce.h"
#include "comm/dispatch.h"
#include "comm/exchange.cuh"
#include "common/ptx.cuh"

namespace srt::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kLane = 8;  // values of a vector

template <typename T, int kRanks, bool kTwoShots>
__global__ void __launch_bounds__(kThreads)
    all_reduce_kernel(const __grid_constant__ AllReduceParams p) {
  ptx::grid_launch();
  ptx::grid_wait();
  const int slot = static_cast<int>(blockIdx.x);
  uint32_t* const rounds = comm::rounds_of(p.peers, slot);
  uint32_t round = *rounds;
  const int64_t vectors = p.count / kLane;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t first = int64_t{slot} * kThreads; first < vectors; first += step) {
    const int64_t at = first + threadIdx.x;
    const bool is_inside = at < vectors;  // threads beyond take part with zeros
    uint4 x{};
    if (is_inside) x = static_cast<const uint4*>(p.x)[at];
    const uint4 sum = comm::sum_over_ranks<T, kRanks, kTwoShots>(p.peers, x, ++round,
                                                                 static_cast<int>(threadIdx.x));
    if (is_inside) static_cast<uint4*>(p.out)[at] = sum;
  }
  __syncthreads();  // all have read the number before it changes
  if (threadIdx.x == 0) *rounds = round;
}

// Parallel, Bound  as above; 2 * the part's bytes to each other rank.
template <int kRanks>
__global__ void __launch_bounds__(kThreads)
    all_gather_kernel(const __grid_constant__ AllGatherParams p) {
  ptx::grid_launch();
  ptx::grid_wait();
  const int slot = static_cast<int>(blockIdx.x);
  const int rank = p.peers.rank;
  const int vector = static_cast<int>(threadIdx.x);
  uint32_t* const rounds = comm::rounds_of(p.peers, slot);
  uint32_t round = *rounds;
  const int per_row = p.width / kLane;
  const int vectors = p.num_rows * per_row;
  for (int first = slot * kThreads; first < vectors;
       first += static_cast<int>(gridDim.x) * kThreads) {
    const int at = first + vector;
    const bool is_inside = at < vectors;  // threads beyond take part with zeros
    uint4* const row = static_cast<uint4*>(p.out) + int64_t{at / per_row} * kRanks * per_row;
    const int column = at % per_row;
    uint4 x{};
    if (is_inside) row[rank * per_row + column] = x = static_cast<const uint4*>(p.x)[at];
    ++round;
#pragma unroll
    for (int r = 0; r < kRanks; ++r)
      if (r != rank) comm::send(comm::place(p.peers, r, rank, round, slot, vector), x, round);
    const auto inbox = [&](int r) { return comm::place(p.peers, rank, r, round, slot, vector); };
    comm::receive_all<kRanks>(rank, round, inbox, [&](int half, const comm::Message* got) {
#pragma unroll
      for (int r = 0; r < kRanks; ++r) {
        if (r == rank || !is_inside) continue;
        uint2* const to = reinterpret_cast<uint2*>(row + r * per_row + column) + half;
        *to = {static_cast<uint32_t>(got[r].first), static_cast<uint32_t>(got[r].second)};
      }
    });
  }
  __syncthreads();  // all have read the number before it changes
  if (threadIdx.x == 0) *rounds = round;
}

LaunchShape shape_for(int64_t vectors, const PeerView& peers, bool pdl) {
  const int64_t blocks = std::min(div_up(vectors, int64_t{kThreads}), int64_t{peers.max_blocks});
  return {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads), .pdl = pdl};
}

}  // namespace

cudaError_t all_reduce(const AllReduceParams& p, cudaStream_t stream) {
  if (p.count == 0) return cudaSuccess;
  if (p.count % kLane != 0) return cudaErrorInvalidValue;
  const LaunchShape shape = shape_for(p.count / kLane, p.peers, p.pdl);
  SRT_DISPATCH_HALF_DTYPE(p.dtype, T, {
    SRT_DISPATCH_RANKS(p.peers.size, p.two_shots, kRanks, kTwoShots, {
      return launch(all_reduce_kernel<T, kRanks, kTwoShots>, shape, stream, p);
    });
  });
}

cudaError_t all_gather(const AllGatherParams& p, cudaStream_t stream) {
  const int64_t count = int64_t{p.num_rows} * p.width;
  if (count == 0) return cudaSuccess;
  if (p.width % kLane != 0 || count > INT32_MAX / 2) return cudaErrorInvalidValue;
  const LaunchShape shape = shape_for(count / kLane, p.peers, p.pdl);
  switch (p.peers.size) {
    case 2:
      return launch(all_gather_kernel<2>, shape, stream, p);
    case 4:
      return launch(all_gather_kernel<4>, shape, stream, p);
    case 8:
      return launch(all_gather_kernel<8>, shape, stream, p);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace srt::cuda
