// log_softmax of rows of logits: at one token, and at the most likely ones.
//
// Shapes    see LogprobsParams.
// Parallel  a cluster of 8 blocks a row, a chunk each. Top-n: a block draws its n best in turn,
// each
//           thread keeping the best of its own tokens; the first block merges the lists.
// Bound     HBM: num_rows * vocab * sizeof(dtype); later walks hit L2.
// Numerics  x - max - log(sum exp(x - max)); sums per thread in float32, over threads in float64.
#include "common/ptx.cuh"
#include "sample/logprobs.h"
#include "sample/row.cuh"

namespace srt::cuda {
namespace {

using Ranked = Best<float>;

struct TopList {
  Ranked entries[kMaxTopLogprobs];
};

// The best of this thread's tokens that come after `last` in the order of Better.
template <typename T>
__device__ __forceinline__ Ranked next_best(const T* row, Chunk chunk, const Ranked& last) {
  Ranked best{-INFINITY, kNoToken};
  const int tokens = chunk.end - chunk.begin;
  for (int i = static_cast<int>(threadIdx.x); i < tokens; i += kRowThreads) {
    const Ranked other{to_float(row[chunk.begin + i]), chunk.begin + i};
    const bool after =
        other.value < last.value || (other.value == last.value && other.token > last.token);
    if (after) best = Better{}(best, other);
  }
  return best;
}

// The block's `top` best, in order, into `list`.
template <typename T>
__device__ __forceinline__ void rank_chunk(const T* row, Chunk chunk, int top, TopList& list,
                                           Ranked (&scratch)[2][kWarpSize]) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  Ranked mine = next_best(row, chunk, {INFINITY, -1});
  for (int n = 0; n < top; ++n) {
    Ranked best = mine;
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2)
      best = Better{}(best, shuffle_xor(best, offset));
    Ranked* const slots = scratch[n % 2];
    if (lane == 0) slots[warp] = best;
    __syncthreads();  // one barrier a round: the other half is read by then
    best = slots[lane % (kRowThreads / kWarpSize)];
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2)
      best = Better{}(best, shuffle_xor(best, offset));
    if (threadIdx.x == 0) list.entries[n] = best;
    if (mine.token == best.token && mine.token != kNoToken) mine = next_best(row, chunk, mine);
  }
}

// A lane walks the list of one block of the cluster; the best head goes out, `top` times.
__device__ __forceinline__ void merge_lists(const LogprobsParams& p, TopList& list, int row,
                                            float largest, float log_sum) {
  const int lane = static_cast<int>(threadIdx.x);
  const Ranked none{-INFINITY, kNoToken};
  const TopList* const theirs = cluster_map(&list, lane < cluster_size() ? lane : 0);
  int next = 0;
  for (int n = 0; n < p.top; ++n) {
    const Ranked head = lane < cluster_size() && next < p.top ? theirs->entries[next] : none;
    Ranked best = head;
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2)
      best = Better{}(best, shuffle_xor(best, offset));
    if (head.token == best.token && head.token != kNoToken) ++next;
    if (lane == 0) {
      const int64_t at = static_cast<int64_t>(row) * p.top + n;
      p.top_logprobs[at] = best.value - largest - log_sum;
      p.top_tokens[at] = best.token;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads, 1)
    logprobs_kernel(const __grid_constant__ LogprobsParams p) {
  __shared__ ClusterScratch scratch;
  __shared__ TopList list;
  __shared__ Ranked ranks[2][kWarpSize];
  ptx::grid_launch();
  ptx::grid_wait();
  cluster_arrive();  // this block runs: others may write to it (ClusterReducer waits for them)
  const int row = static_cast<int>(blockIdx.y);
  const T* const logits = static_cast<const T*>(p.logits) + row * p.logits_stride;
  const Chunk chunk = my_chunk(p.vocab);
  ClusterReducer cluster(scratch);

  float largest = -INFINITY;
  for_logits<4>(logits, chunk, [&](int, const float (&x)[kRowLane]) {
#pragma unroll
    for (int j = 0; j < kRowLane; ++j) largest = fmaxf(largest, x[j]);
  });
  largest = cluster.reduce(largest, Max{});
  float sum = 0.0f;
  for_logits<4>(logits, chunk, [&](int, const float (&x)[kRowLane]) {
#pragma unroll
    for (int j = 0; j < kRowLane; ++j) sum += expf(x[j] - largest);
  });
  const double total = cluster.reduce(static_cast<double>(sum), Add{});
  const float log_sum = logf(static_cast<float>(total));
  if (p.tokens != nullptr && cluster_rank() == 0 && threadIdx.x == 0)
    p.token_logprobs[row] = to_float(logits[p.tokens[row]]) - largest - log_sum;
  if (p.top == 0) return;
  rank_chunk(logits, chunk, p.top, list, ranks);
  cluster_sync();  // every block's list is complete
  if (cluster_rank() == 0 && threadIdx.x < kWarpSize) merge_lists(p, list, row, largest, log_sum);
  cluster_sync();  // the lists live until they are merged
}

}  // namespace

cudaError_t logprobs(const LogprobsParams& p, cudaStream_t stream) {
  if (p.num_rows == 0) return cudaSuccess;
  if (p.top < 0 || p.top > kMaxTopLogprobs || p.top > p.vocab) return cudaErrorInvalidValue;
  const int num_blocks = compute_capability() >= 90 ? kMaxCluster : 1;
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(num_blocks), static_cast<unsigned>(p.num_rows)),
      .block = dim3(kRowThreads),
      .pdl = p.pdl,
      .cluster = num_blocks};
  SRT_DISPATCH_DTYPE(p.dtype, T, { return launch(logprobs_kernel<T>, shape, stream, p); });
}

}  // namespace srt::cuda
