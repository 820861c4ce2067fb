// Sums over ranks that share a host, for small messages: alone, and with the norm that follows.
// And rows that are put together from the ranks' parts.
#pragma once

#include "comm/peers.h"
#include "common/launch.h"
#include "norm/norm.h"

namespace srt::cuda {

struct AllReduceParams {
  PeerView peers;
  const void* x;  // 16-bit dtype [count], contiguous; partial sums
  void* out;      // the same, may be x: the sum, equal bits on every rank
  int64_t count;  // a multiple of 8, the same on every rank
  Dtype dtype;
  bool two_shots;  // the same on every rank; with 2 ranks there is one shot only
  bool pdl;
};

constexpr int kMaxAllReduceHidden = 8 * kPeerVectors;

// Every rank launches the same calls in the same order.
[[nodiscard]] cudaError_t all_reduce(const AllReduceParams& p, cudaStream_t stream);

// `norm` of the sum of x over the ranks, which is rounded to dtype as all_reduce rounds it.
struct AllReduceNormParams {
  PeerView peers;
  NormParams norm;  // 16-bit dtype, hidden up to kMaxAllReduceHidden
  bool two_shots;
};

[[nodiscard]] cudaError_t all_reduce_norm(const AllReduceNormParams& p, cudaStream_t stream);

struct AllGatherParams {
  PeerView peers;
  const void* x;  // 16-bit values [num_rows, width], contiguous
  void* out;      // [num_rows, size * width], contiguous: by row the ranks' parts in their order
  int num_rows;
  int width;  // a multiple of 8
  bool pdl;
};

[[nodiscard]] cudaError_t all_gather(const AllGatherParams& p, cudaStream_t stream);

}  // namespace srt::cuda
