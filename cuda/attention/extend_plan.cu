// Lists the query tiles of a step, longest first.
#include "attention/extend.h"

namespace srt::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kBuckets = 1024;

// Keys that tile `tile` of a sequence attends to under a causal mask, in buckets of 2^shift keys;
// bucket 0 is the longest. Without the mask all tiles of a sequence tie, and the order is still
// fine.
__device__ __forceinline__ int bucket_of(int tile, int tile_tokens, int q_len, int seq_len,
                                         int shift) {
  const int keys = seq_len - q_len + min(q_len, (tile + 1) * tile_tokens);
  return kBuckets - 1 - min(kBuckets - 1, max(keys, 0) >> shift);
}

// Calls f(sequence, tile, bucket) for every tile: a warp takes a sequence, a lane a tile.
template <typename F>
__device__ __forceinline__ void for_each_tile(const ExtendPlanParams& p, int first_seq, int shift,
                                              F f) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int seq = first_seq + warp; seq < p.num_seqs; seq += kThreads / 32) {
    const int q_len = p.q_indptr[seq + 1] - p.q_indptr[seq];
    const int seq_len = p.seq_lens[seq];
    const int num_tiles = div_up(q_len, p.tile_tokens);
    for (int tile = lane; tile < num_tiles; tile += 32)
      f(seq, tile, bucket_of(tile, p.tile_tokens, q_len, seq_len, shift));
  }
}

// counts[i] becomes the sum of the counts before i; returns the sum of all.
__device__ int exclusive_scan(int (&counts)[kBuckets], int (&warp_sums)[32]) {
  static_assert(kBuckets == kThreads);
  const int t = static_cast<int>(threadIdx.x);
  const int own = counts[t];
  int sum = own;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, sum, offset);
    if (t % 32 >= offset) sum += below;
  }
  if (t % 32 == 31) warp_sums[t / 32] = sum;
  __syncthreads();  // all warps' sums stand
  int before = 0;
  int total = 0;
  for (int w = 0; w < 32; ++w) {
    if (w < t / 32) before += warp_sums[w];
    total += warp_sums[w];
  }
  counts[t] = before + sum - own;
  __syncthreads();  // offsets stand before anyone takes from them
  return total;
}

// A counting sort in one block: histogram, scan, scatter. A few microseconds, once a step.
__global__ void __launch_bounds__(kThreads, 1) plan_extend_kernel(const ExtendPlanParams p) {
  __shared__ int counts[kBuckets];
  __shared__ int warp_sums[32];
  __shared__ int max_len;
  const int t = static_cast<int>(threadIdx.x);
  const int first_seq = p.num_decode != nullptr ? *p.num_decode : p.first_seq;
  counts[t] = 0;
  if (t == 0) max_len = 0;
  __syncthreads();  // zeroed before the atomics
  for (int seq = first_seq + t; seq < p.num_seqs; seq += kThreads)
    atomicMax(&max_len, p.seq_lens[seq]);
  __syncthreads();  // max_len stands
  int shift = 5;
  while ((max_len >> shift) >= kBuckets) ++shift;

  for_each_tile(p, first_seq, shift, [&](int, int, int bucket) { atomicAdd(&counts[bucket], 1); });
  __syncthreads();  // the histogram stands
  const int num_tiles = exclusive_scan(counts, warp_sums);
  for_each_tile(p, first_seq, shift, [&](int seq, int tile, int bucket) {
    const int first = tile * p.tile_tokens;
    const int q_len = p.q_indptr[seq + 1] - p.q_indptr[seq];
    const int seq_len = p.seq_lens[seq];
    int32_t* item = p.plan + kExtendPlanHeader + kExtendTileWords * atomicAdd(&counts[bucket], 1);
    *reinterpret_cast<int4*>(item) =
        make_int4(p.q_indptr[seq] + first, min(p.tile_tokens, q_len - first),
                  seq_len - q_len + first, seq_len);
    *reinterpret_cast<int4*>(item + 4) = make_int4(p.rows[seq], 0, 0, 0);
  });
  if (t < kExtendPlanHeader) p.plan[t] = t == 0 ? num_tiles : 0;
}

}  // namespace

cudaError_t plan_extend(const ExtendPlanParams& p, cudaStream_t stream) {
  plan_extend_kernel<<<1, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace srt::cuda
