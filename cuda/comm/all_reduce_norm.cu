// The sum of partial rows over ranks, the residual add and the norm, as one kernel.
//
// Shapes    see NormParams; hidden % 8 == 0; rows start at multiples of 16 bytes.
// Parallel  a block a row, 8 or 16 values a thread; blocks take several rows in turn where there
//           are more rows than blocks.
// Bound     latency, as of all_reduce; residual and weight are on their way while messages are.
// Numerics  the sum as all_reduce's, rounded to dtype; from there on as norm's.
#include <algorithm>

#include "comm/all_reduce.h"
#include "comm/dispatch.h"
#include "comm/exchange.cuh"
#include "common/ptx.cuh"
#include "norm/norm_row.cuh"

namespace srt::cuda {
namespace {

constexpr int kMaxThreads = 512;  // a block has a multiprocessor for itself: registers are plenty

template <typename T, int kVecs, int kRanks, bool kTwoShots>
__global__ void __launch_bounds__(kMaxThreads, 1)
    all_reduce_norm_kernel(const __grid_constant__ AllReduceNormParams params) {
  __shared__ float scratch[3 * kWarpSize];
  const NormParams& p = params.norm;
  ptx::grid_launch();
  Vec<T, kNormLane> weight[kVecs];
  for_vectors<kVecs>(p.hidden, [&](int i, int at) {
    weight[i] = load_vec<kNormLane>(static_cast<const T*>(p.weight) + at);
  });
  ptx::grid_wait();
  uint32_t* const rounds = comm::rounds_of(params.peers, static_cast<int>(blockIdx.x));
  uint32_t round = *rounds;
  for (int row = static_cast<int>(blockIdx.x); row < p.num_rows;
       row += static_cast<int>(gridDim.x)) {
    ++round;
    const T* const x = static_cast<const T*>(p.x) + row_offset(p.x_rows, row);
    T* const residual = p.residual == nullptr
                            ? nullptr
                            : static_cast<T*>(p.residual) + static_cast<int64_t>(row) * p.hidden;
    uint4 own[kVecs];
    Vec<T, kNormLane> before[kVecs];
    for_vectors<kVecs>(p.hidden, [&](int i, int at) {
      own[i] = *reinterpret_cast<const uint4*>(x + at);
      if (residual != nullptr) before[i] = load_vec<kNormLane>(residual + at);
    });
    float values[kVecs][kNormLane] = {};
    for_vectors<kVecs>(p.hidden, [&](int i, int at) {
      const uint4 sum =
          comm::sum_over_ranks<T, kRanks, kTwoShots>(params.peers, own[i], round, at / kNormLane);
      const Vec<T, kNormLane>& rounded_sum = reinterpret_cast<const Vec<T, kNormLane>&>(sum);
#pragma unroll
      for (int j = 0; j < kNormLane; ++j) values[i][j] = to_float(rounded_sum[j]);
    });
    if (residual != nullptr) add_residual(values, before, residual, p.hidden);
    finish_norm(values, weight, p, row, scratch);
    __syncthreads();  // scratch is free, and all have read the number
  }
  if (threadIdx.x == 0) *rounds = round;
}

template <typename T, int kVecs>
cudaError_t launch_for(const AllReduceNormParams& p, const LaunchShape& shape,
                       cudaStream_t stream) {
  SRT_DISPATCH_RANKS(p.peers.size, p.two_shots, kRanks, kTwoShots, {
    return launch(all_reduce_norm_kernel<T, kVecs, kRanks, kTwoShots>, shape, stream, p);
  });
}

}  // namespace

cudaError_t all_reduce_norm(const AllReduceNormParams& p, cudaStream_t stream) {
  const NormParams& n = p.norm;
  if (n.num_rows == 0) return cudaSuccess;
  if (n.hidden % kNormLane != 0 || n.hidden > kMaxAllReduceHidden) return cudaErrorInvalidValue;
  if (n.fp8.grouped && n.hidden % kFp8Group != 0) return cudaErrorInvalidValue;
  const int vectors = n.hidden / kNormLane;
  const int per_thread = vectors > kMaxThreads ? 2 : 1;
  const int blocks = std::min(n.num_rows, p.peers.max_blocks);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(blocks)),
      .block = dim3(static_cast<unsigned>(round_up(div_up(vectors, per_thread), kWarpSize))),
      .pdl = n.pdl};
  SRT_DISPATCH_HALF_DTYPE(n.dtype, T, {
    if (per_thread == 1) return launch_for<T, 1>(p, shape, stream);
    return launch_for<T, 2>(p, shape, stream);
  });
}

}  // namespace srt::cuda
