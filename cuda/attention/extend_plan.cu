// Orders the work of a step: what shares keys stays together, and the longest
// comes first.
//
// Two aims pull apart. The longest items should start first, so that the last
// ones to finish are short. But items over the same keys should run at the same
// time, so that those come from L2. So the KV of all (sequence, head) pairs,
// laid end to end, is cut into sections that fit into L2; the sections run one
// after the other. The items of the last run longest first, those of the one
// before shortest first, and so on: blocks take one item each of every round,
// and where a round spans two sections its items should be alike.
#include "attention/extend.h"

namespace srt::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kBuckets = kThreads;
// Half of an H100's L2 holds a line that both halves of the chip read; two
// sections overlap.
constexpr int kSectionBytes = 16 << 20;

// The place of an item in the order: sections, and within each `lengths`
// classes of length.
struct Order {
  int section_keys;
  int num_sections;
  int max_keys;

  // The item attends to `keys` keys at `start` (in keys, all heads in line).
  __device__ __forceinline__ int bucket(int64_t start, int keys) const {
    int section = static_cast<int>(start / section_keys);
    if (num_sections > kBuckets)
      section = static_cast<int>(static_cast<int64_t>(section) * kBuckets / num_sections);
    const int lengths = max(1, kBuckets / num_sections);
    const int64_t scaled = static_cast<int64_t>(max(keys - 1, 0)) * lengths / max_keys;
    const int length = min(static_cast<int>(scaled), lengths - 1);
    const int last = min(num_sections, kBuckets) - 1;
    return section * lengths + ((last - section) % 2 == 0 ? lengths - 1 - length : length);
  }
};

// The sum of `own` over the threads before this one; `total` is the sum over
// all.
__device__ int exclusive_scan(int own, int (&warp_sums)[32], int& total) {
  const int t = static_cast<int>(threadIdx.x);
  int sum = own;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, sum, offset);
    if (t % 32 >= offset) sum += below;
  }
  __syncthreads();  // the last scan's sums have been read
  if (t % 32 == 31) warp_sums[t / 32] = sum;
  __syncthreads();  // all warps' sums stand
  int before = 0;
  total = 0;
  for (int w = 0; w < 32; ++w) {
    if (w < t / 32) before += warp_sums[w];
    total += warp_sums[w];
  }
  return before + sum - own;
}

// Writes to starts[seq] how many keys the planned sequences before it have;
// returns the sum of all.
__device__ int scan_lengths(const ExtendPlanParams& p, int first_seq, int32_t* starts,
                            int (&warp_sums)[32]) {
  int carry = 0;
  for (int base = first_seq; base < p.num_seqs; base += kThreads) {
    const int seq = base + static_cast<int>(threadIdx.x);
    int total;
    const int before = exclusive_scan(seq < p.num_seqs ? p.seq_lens[seq] : 0, warp_sums, total);
    if (seq < p.num_seqs) starts[seq] = carry + before;
    carry += total;
  }
  return carry;
}

// Calls f(sequence, tile, head, bucket) for every item: the warps share out the
// sequences, or the items of each where there are few.
template <typename F>
__device__ __forceinline__ void for_each_item(const ExtendPlanParams& p, int first_seq,
                                              const int32_t* starts, const Order& order, F f) {
  const int tile_tokens = extend_tile_tokens(p.num_q_heads / p.num_kv_heads);
  const int warps_per_seq = max(1, 32 / max(1, p.num_seqs - first_seq));
  const int teams = 32 / warps_per_seq;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp >= teams * warps_per_seq) return;
  const int rank = warp % warps_per_seq * 32 + static_cast<int>(threadIdx.x) % 32;
  for (int seq = first_seq + warp / warps_per_seq; seq < p.num_seqs; seq += teams) {
    const int q_len = p.q_indptr[seq + 1] - p.q_indptr[seq];
    const int seq_len = p.seq_lens[seq];
    const int64_t start = static_cast<int64_t>(starts[seq]) * p.num_kv_heads;
    const int num_items = div_up(q_len, tile_tokens) * p.num_kv_heads;
    for (int i = rank; i < num_items; i += 32 * warps_per_seq) {
      const int tile = i / p.num_kv_heads;
      const int head = i % p.num_kv_heads;
      // Under a causal mask; without one the items of a sequence tie, which the
      // order may ignore.
      const int keys = seq_len - q_len + min(q_len, (tile + 1) * tile_tokens);
      f(seq, tile, head, order.bucket(start + static_cast<int64_t>(head) * seq_len, keys));
    }
  }
}

// A counting sort in one block: histogram, scan, scatter. A few microseconds,
// once a step.
__global__ void __launch_bounds__(kThreads, 1)
    plan_extend_kernel(const ExtendPlanParams p, int32_t* starts) {
  __shared__ int counts[kBuckets];
  __shared__ int warp_sums[32];
  __shared__ int max_len;
  const int t = static_cast<int>(threadIdx.x);
  const int first_seq = p.num_decode != nullptr ? *p.num_decode : p.first_seq;
  counts[t] = 0;
  if (t == 0) max_len = 1;
  const int64_t num_keys = scan_lengths(p, first_seq, starts, warp_sums);
  __syncthreads();  // counts and max_len are set, starts are written
  for (int seq = first_seq + t; seq < p.num_seqs; seq += kThreads)
    atomicMax(&max_len, p.seq_lens[seq]);
  __syncthreads();  // max_len stands
  Order order;
  order.section_keys = max(1, kSectionBytes / p.key_bytes);
  order.num_sections = static_cast<int>(num_keys * p.num_kv_heads / order.section_keys) + 1;
  order.max_keys = max_len;

  for_each_item(p, first_seq, starts, order,
                [&](int, int, int, int bucket) { atomicAdd(&counts[bucket], 1); });
  __syncthreads();  // the histogram stands
  int num_items;
  const int offset = exclusive_scan(counts[t], warp_sums, num_items);
  counts[t] = offset;
  __syncthreads();  // offsets stand before anyone takes from them
  const int tile_tokens = extend_tile_tokens(p.num_q_heads / p.num_kv_heads);
  for_each_item(p, first_seq, starts, order, [&](int seq, int tile, int head, int bucket) {
    const int first = tile * tile_tokens;
    const int q_len = p.q_indptr[seq + 1] - p.q_indptr[seq];
    const int seq_len = p.seq_lens[seq];
    const int num_tokens = min(tile_tokens, q_len - first);
    int32_t* item = p.plan + kExtendPlanHeader + kExtendItemWords * atomicAdd(&counts[bucket], 1);
    *reinterpret_cast<int4*>(item) =
        make_int4(p.q_indptr[seq] + first, seq_len - q_len + first, seq_len,
                  p.rows[seq] | (num_tokens - 1) << 16 | head << 23);
  });
  if (t < kExtendPlanHeader) p.plan[t] = t == 0 ? num_items : 0;
}

}  // namespace

cudaError_t plan_extend(const ExtendPlanParams& p, cudaStream_t stream) {
  if (p.num_seqs == 0) return cudaSuccess;
  int32_t* const scratch = p.plan + p.plan_words - p.num_seqs;
  plan_extend_kernel<<<1, kThreads, 0, stream>>>(p, scratch);
  return cudaGetLastError();
}

}  // namespace srt::cuda
