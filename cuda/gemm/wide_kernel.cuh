// The wide GEMM kernel: 128 or 192 rows of x are the M side of wgmma, up to 256 weight rows its N
// side.
//
// Shapes    see WideGemmParams. A CTA owns kGroups * 64 rows of x, kN rows of w (gated: kN / 2 gate
//           rows and the up rows that match them) and a share of k.
// Parallel  one producer thread feeds the copy engine; kGroups consumer warpgroups of 64 rows each
// run
//           wgmma. A cluster is `split` CTAs along k times `pair` CTAs along the rows of x. Pairs
//           read the same weights: each loads half of them, and the copy engine hands both halves
//           to both. Without a split, clusters are persistent over tiles, and the producer runs
//           ahead into the next one; with a split, ranks reduce over distributed shared memory.
// Bound     HBM, n * k * 2 bytes, or the tensor cores. L2 delivers w once and x once a tile.
// Overlap   the producer fills the pipeline with weights before grid_wait(): only x and y depend on
//           the previous kernel.
// Numerics  fp32 accumulation in the order of k, split ranks in order; rounds once to the output
//           type (gated: gate, up, silu and the product each round, as the unfused operations do).
#pragma once

#include "common/hopper.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/multicast.cuh"
#include "gemm/wgmma_wide.cuh"
#include "gemm/wide_launch.h"

namespace srt::cuda::wide {

using namespace hopper;

constexpr int kXBoxBytes = kBoxRows * 128;

template <int kN_, int kGroups_>
struct Layout {
  static constexpr int kN = kN_;
  static constexpr int kGroups = kGroups_;
  static constexpr int kRows = kGroups * kBoxRows;
  static constexpr int kConsumers = kGroups * 128;
  // Three warpgroups need more registers than a thread of four gets at the launch: a whole
  // warpgroup stands beside them, gives its own back, and one of its threads feeds the copy engine.
  static constexpr bool kTradesRegisters = kGroups == 3;
  static constexpr int kProducerRegisters = 24;
  static constexpr int kConsumerRegisters = 160;
  static constexpr int kThreads = kConsumers + (kTradesRegisters ? 128 : 32);
  static constexpr int kWBytes = kN * 128;
  static constexpr int kXBytes = kGroups * kXBoxBytes;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kStages = 224 * 1024 / kStageBytes;
  static constexpr int kPartialStride = kN + 8;  // floats; conflict-free
  static_assert(kRows * kPartialStride * 4 <= kStages * kStageBytes, "partials reuse the pipeline");
  static constexpr size_t kSmemBytes =
      1024 + static_cast<size_t>(kStages) * kStageBytes + 2 * 8 * kStages;
};

// What one CTA of a cluster works on, whatever the item.
struct Place {
  int row_rank;  // among its pair
  int k_rank;    // among the split
  int k_begin;   // blocks
  int k_blocks;
  int first_item;
  int item_step;
};

template <int kPair>
__device__ __forceinline__ Place find_place(const Args& a) {
  const int cluster = kPair * a.split;
  const int rank = static_cast<int>(blockIdx.x) % cluster;
  Place p;
  p.row_rank = rank % kPair;
  p.k_rank = rank / kPair;
  p.k_begin = a.num_k_blocks * p.k_rank / a.split;
  p.k_blocks = a.num_k_blocks * (p.k_rank + 1) / a.split - p.k_begin;
  p.first_item = static_cast<int>(blockIdx.x) / cluster;
  p.item_step = a.split == 1 ? static_cast<int>(gridDim.x) / cluster : a.num_items;
  return p;
}

// The first row of x of this CTA in an item, and how many follow it (up to kRows; 0 past the end).
template <typename L, int kPair>
__device__ __forceinline__ int first_row(const Args& a, const Place& p, int item) {
  return (item % a.row_blocks * kPair + p.row_rank) * L::kRows;
}
template <typename L, int kPair>
__device__ __forceinline__ int rows_of(const Args& a, const Place& p, int item) {
  return max(0, min(L::kRows, a.m - first_row<L, kPair>(a, p, item)));
}

// Half of the tile's weight rows: gated, the gate rows or the up rows.
template <typename L, bool kGated>
__device__ __forceinline__ int half_row(const Args& a, int tile, int half) {
  constexpr int kHalf = L::kN / 2;
  if constexpr (kGated) return half * (a.n / 2) + tile * kHalf;
  return tile * L::kN + half * kHalf;
}

template <typename L, bool kGated, int kPair>
__device__ __forceinline__ void load_weights(const Args& a, const Place& p, uint32_t stage,
                                             uint32_t bar, int tile, int block) {
  constexpr uint32_t kHalfBytes = L::kWBytes / 2;
  const uint32_t w = stage + L::kXBytes;
  const uint64_t policy = a.row_blocks == 1 ? kEvictFirst : kEvictNormal;
  if constexpr (kPair == 2) {
    const uint16_t both = static_cast<uint16_t>(3 << (2 * p.k_rank));
    load_box_multicast(w + p.row_rank * kHalfBytes, &a.w_map, bar, block * kBlockK,
                       half_row<L, kGated>(a, tile, p.row_rank), both, policy);
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      load_box(w + half * kHalfBytes, &a.w_map, bar, block * kBlockK,
               half_row<L, kGated>(a, tile, half), policy);
    }
  }
}

// The producer thread's walk over all blocks of all items.
template <typename L, bool kGated, int kPair>
struct Producer {
  const Args& a;
  const Place& p;
  uint32_t smem;
  uint32_t full;

  __device__ __forceinline__ int item(int i) const {
    return p.first_item + i / p.k_blocks * p.item_step;
  }
  __device__ __forceinline__ int block(int i) const { return p.k_begin + i % p.k_blocks; }
  __device__ __forceinline__ uint32_t stage(int i) const {
    return smem + i % L::kStages * L::kStageBytes;
  }
  __device__ __forceinline__ uint32_t bar(int i) const { return full + 8 * (i % L::kStages); }

  __device__ __forceinline__ void weights(int i) const {
    const int boxes = div_up(rows_of<L, kPair>(a, p, item(i)), kBoxRows);
    barrier_expect_bytes(bar(i), L::kWBytes + boxes * kXBoxBytes);
    load_weights<L, kGated, kPair>(a, p, stage(i), bar(i), item(i) / a.row_blocks, block(i));
  }
  __device__ __forceinline__ void rows(int i) const {
    const int boxes = div_up(rows_of<L, kPair>(a, p, item(i)), kBoxRows);
    for (int b = 0; b < boxes; ++b) {
      load_box(stage(i) + b * kXBoxBytes, &a.x_map, bar(i), block(i) * kBlockK,
               first_row<L, kPair>(a, p, item(i)) + b * kBoxRows, kEvictLast);
    }
  }
};

template <typename L, bool kGated, int kPair>
__device__ void produce(const Args& a, const Place& p, uint32_t smem, uint32_t full,
                        uint32_t empty) {
  const Producer<L, kGated, kPair> load{a, p, smem, full};
  const int left = a.num_items - p.first_item;
  const int total = left > 0 ? div_up(left, p.item_step) * p.k_blocks : 0;
  const int ahead = min(total, L::kStages);
  if (total == ahead) ptx::grid_launch();  // little to load: the next kernel may settle at once
  for (int i = 0; i < ahead; ++i) load.weights(i);
  ptx::grid_wait();  // x comes from the previous kernel
  for (int i = 0; i < ahead; ++i) load.rows(i);
  for (int i = ahead; i < total; ++i) {
    barrier_wait(empty + 8 * (i % L::kStages), (i / L::kStages - 1) & 1);
    load.weights(i);
    load.rows(i);
  }
  if (total > ahead) ptx::grid_launch();  // all loads are on their way
}

// One warp hands a stage back to every CTA that writes into it.
template <int kPair>
__device__ __forceinline__ void release(const Place& p, uint32_t bar) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (kPair == 2) {
    if (lane < 2) barrier_arrive_remote(map_to_rank(bar, 2 * p.k_rank + lane));
  } else {
    if (lane == 0) barrier_arrive(bar);
  }
}

// A warpgroup without rows: it only keeps the pipeline turning.
template <typename L, int kPair>
__device__ __forceinline__ void skip(const Place& p, uint32_t full, uint32_t empty, int& cursor) {
  constexpr int kStages = L::kStages;
  for (int i = 0; i < p.k_blocks; ++i, ++cursor) {
    barrier_wait(full + 8 * (cursor % kStages), (cursor / kStages) & 1);
    release<kPair>(p, empty + 8 * (cursor % kStages));
  }
}

// acc += x w^T for 16 values of k. In halves where one instruction would need more registers than
// a thread has before the producers give theirs.
template <typename T, typename L>
__device__ __forceinline__ void multiply(float (&acc)[L::kN / 2], uint64_t x, uint64_t w,
                                         int keep) {
  if constexpr (L::kTradesRegisters && L::kN > 192) {
    constexpr int kHalf = L::kN / 2;
    using Half = float[kHalf / 2];
    Wgmma<T, kHalf>::run(reinterpret_cast<Half&>(acc[0]), x, w, keep);
    Wgmma<T, kHalf>::run(reinterpret_cast<Half&>(acc[kHalf / 2]), x, w + kHalf * 128 / 16, keep);
  } else {
    Wgmma<T, L::kN>::run(acc, x, w, keep);
  }
}

template <typename T, typename L, int kPair>
__device__ __forceinline__ void accumulate(float (&acc)[L::kN / 2], const Place& p, uint32_t smem,
                                           uint32_t full, uint32_t empty, int group, int& cursor) {
  for (int i = 0; i < p.k_blocks; ++i, ++cursor) {
    const int s = cursor % L::kStages;
    barrier_wait(full + 8 * s, (cursor / L::kStages) & 1);
    const uint32_t stage = smem + s * L::kStageBytes;
    const uint64_t x = k_major_descriptor(stage + group * kXBoxBytes);
    const uint64_t w = k_major_descriptor(stage + L::kXBytes);
    fence_registers(acc);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kBlockK / 16; ++k) {
      multiply<T, L>(acc, x + 2 * k, w + 2 * k, i > 0 || k > 0);
    }
    wgmma_commit();
    fence_registers(acc);
    wgmma_wait<1>();  // the block before this one has been read
    if (i > 0) release<kPair>(p, empty + 8 * ((cursor - 1) % L::kStages));
  }
  wgmma_wait<0>();
  fence_registers(acc);
  release<kPair>(p, empty + 8 * ((cursor - 1) % L::kStages));
}

// Writes eight neighbours of a row, all of which exist or none; `eight` is already rounded to T.
template <typename T>
__device__ __forceinline__ void store_rounded(const Args& a, uint4 eight, int row, int col) {
  T* const at = static_cast<T*>(a.y) + row * a.y_stride + col;
  if (a.add) {
    gemm::Eight<T> values;
    values.bits = eight;
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = gemm::to_float(values.values[i]);
    gemm::store_eight(at, v, true);
  } else {
    *reinterpret_cast<uint4*>(at) = eight;
  }
}

// A finished tile, from the accumulators of one warpgroup.
template <typename T, int kN, bool kGated>
__device__ __forceinline__ void write_accumulators(const Args& a, float (&acc)[kN / 2], int tile,
                                                   int first, int rows) {
  constexpr int kCols = kGated ? kN / 2 : kN;
  const int num_cols = kGated ? a.n / 2 : a.n;
  const int t = static_cast<int>(threadIdx.x) % 128;
  const int q = t % 4;
  const int row = t / 32 * 16 + t % 32 / 4;  // and 8 below
#pragma unroll
  for (int j = 0; j < kCols / 8; j += 2) {
    uint32_t v[4];  // (row, j), (row, j + 1), (row + 8, j), (row + 8, j + 1)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = 4 * (j + i % 2) + i / 2 * 2;
      float lo = acc[at];
      float hi = acc[at + 1];
      if constexpr (kGated) {
        lo = gemm::silu_mul<T>(lo, acc[at + kN / 4]);
        hi = gemm::silu_mul<T>(hi, acc[at + 1 + kN / 4]);
      } else if (a.bias != nullptr) {
        const int col = tile * kCols + 8 * (j + i % 2) + 2 * q;
        const T* const bias = static_cast<const T*>(a.bias) + col;
        lo += col < num_cols ? gemm::to_float(bias[0]) : 0.0f;
        hi += col < num_cols ? gemm::to_float(bias[1]) : 0.0f;
      }
      v[i] = gemm::pack<T>(lo, hi);
    }
    const uint4 eight = gemm::transpose_quad(v);
    const int my_row = row + q / 2 * 8;
    const int col = tile * kCols + 8 * (j + q % 2);
    if (my_row < rows && col < num_cols) store_rounded<T>(a, eight, first + my_row, col);
  }
}

// Puts one warpgroup's accumulators where the other ranks of the split find them.
template <typename L>
__device__ __forceinline__ void scatter(const float (&acc)[L::kN / 2], float* partial, int group,
                                        int rows) {
  const int t = static_cast<int>(threadIdx.x) % 128;
  const int row = group * kBoxRows + t / 32 * 16 + t % 32 / 4;
#pragma unroll
  for (int j = 0; j < L::kN / 8; ++j) {
    const int at = row * L::kPartialStride + 8 * j + t % 4 * 2;
    if (row < rows) *reinterpret_cast<float2*>(partial + at) = {acc[4 * j], acc[4 * j + 1]};
    if (row + 8 < rows) {
      *reinterpret_cast<float2*>(partial + at + 8 * L::kPartialStride) = {acc[4 * j + 2],
                                                                          acc[4 * j + 3]};
    }
  }
}

// The sum over the split of eight neighbours in a row of the tile.
template <typename L, int kPair>
__device__ __forceinline__ void sum_ranks(const Args& a, const Place& p, uint32_t partial, int row,
                                          int col, float (&v)[8]) {
  const uint32_t at = partial + (row * L::kPartialStride + col) * 4;
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = 0.0f;
  for (int r = 0; r < a.split; ++r) {
    const uint32_t remote = map_to_rank(at, r * kPair + p.row_rank);
    const float4 lo = load_remote(remote);
    const float4 hi = load_remote(remote + 16);
    v[0] += lo.x, v[1] += lo.y, v[2] += lo.z, v[3] += lo.w;
    v[4] += hi.x, v[5] += hi.y, v[6] += hi.z, v[7] += hi.w;
  }
}

// This rank's rows of a tile that a split has computed; all consumers.
template <typename T, typename L, bool kGated, int kPair>
__device__ void reduce_split(const Args& a, const Place& p, uint32_t partial) {
  constexpr int kCols = kGated ? L::kN / 2 : L::kN;
  const int num_cols = kGated ? a.n / 2 : a.n;
  const int tile = p.first_item / a.row_blocks;
  const int first = first_row<L, kPair>(a, p, p.first_item);
  const int rows = rows_of<L, kPair>(a, p, p.first_item);
  for (int i = static_cast<int>(threadIdx.x);; i += L::kConsumers) {
    const int row = i / (kCols / 8) * a.split + p.k_rank;
    const int local = i % (kCols / 8) * 8;
    const int col = tile * kCols + local;
    if (row >= rows) break;
    if (col >= num_cols) continue;
    float v[8];
    sum_ranks<L, kPair>(a, p, partial, row, local, v);
    if constexpr (kGated) {
      float up[8];
      sum_ranks<L, kPair>(a, p, partial, row, local + L::kN / 2, up);
#pragma unroll
      for (int c = 0; c < 8; ++c) v[c] = gemm::silu_mul<T>(v[c], up[c]);
    } else if (a.bias != nullptr) {
#pragma unroll
      for (int c = 0; c < 8; ++c) v[c] += gemm::to_float(static_cast<const T*>(a.bias)[col + c]);
    }
    gemm::store_eight(static_cast<T*>(a.y) + (first + row) * a.y_stride + col, v, a.add);
  }
}

template <typename T, typename L, bool kGated, int kPair>
__device__ void consume(const Args& a, const Place& p, uint32_t smem, uint32_t full, uint32_t empty,
                        float* partial) {
  const int group = static_cast<int>(threadIdx.x) / 128;
  int cursor = 0;
  for (int item = p.first_item; item < a.num_items; item += p.item_step) {
    const int rows = rows_of<L, kPair>(a, p, item);
    const bool has_rows = rows > group * kBoxRows;
    float acc[L::kN / 2];
    if (has_rows) {
      accumulate<T, L, kPair>(acc, p, smem, full, empty, group, cursor);
    } else {
      skip<L, kPair>(p, full, empty, cursor);
    }
    if (a.split == 1) {
      if (!has_rows) continue;
      if (a.add) ptx::grid_wait();  // y may be the previous kernel's
      write_accumulators<T, L::kN, kGated>(a, acc, item / a.row_blocks,
                                           first_row<L, kPair>(a, p, item) + group * kBoxRows,
                                           rows - group * kBoxRows);
    } else {
      named_barrier(1, L::kConsumers);  // wgmma has read the whole pipeline: partials may reuse it
      if (has_rows) scatter<L>(acc, partial, group, rows);
    }
  }
}

__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

template <typename T, int kN, int kGroups, bool kGated, int kPair>
__global__ void __launch_bounds__(Layout<kN, kGroups>::kThreads, 1)
    wide_kernel(const __grid_constant__ Args a) {
  using L = Layout<kN, kGroups>;
  constexpr int kConsumers = L::kConsumers;
  extern __shared__ uint8_t raw[];
  uint8_t* const base = raw + (1024 - ptx::smem_address(raw) % 1024) % 1024;
  const uint32_t smem = ptx::smem_address(base);
  const uint32_t full = smem + L::kStages * L::kStageBytes;
  const uint32_t empty = full + 8 * L::kStages;
  const bool in_cluster = kPair * a.split > 1;
  const Place place = find_place<kPair>(a);
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);

  if (threadIdx.x == kConsumers) {
    prefetch_map(&a.w_map);
    prefetch_map(&a.x_map);
    for (int s = 0; s < L::kStages; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, kConsumers / 32 * kPair);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if constexpr (kPair == 2) cluster_sync();  // the partner's barriers count from here on
  // Each side ends for itself: behind a join neither would have a register count of its own.
  if (warp >= kConsumers / 32) {
    if constexpr (L::kTradesRegisters) lower_registers<L::kProducerRegisters>();
    if (threadIdx.x == kConsumers) produce<L, kGated, kPair>(a, place, smem, full, empty);
    __syncwarp();
    if (a.split > 1) cluster_sync();
    if (in_cluster) cluster_sync();
  } else {
    if constexpr (L::kTradesRegisters) raise_registers<L::kConsumerRegisters>();
    consume<T, L, kGated, kPair>(a, place, smem, full, empty, reinterpret_cast<float*>(base));
    __syncwarp();
    if (a.split > 1) {
      cluster_sync();  // every rank's partials are in place
      if (a.add) ptx::grid_wait();
      reduce_split<T, L, kGated, kPair>(a, place, smem);
    }
    if (in_cluster) cluster_sync();  // nobody leaves while others write into its memory or read it
  }
}

template <typename T, int kN, int kGroups, bool kGated, int kPair>
cudaError_t launch_wide(const WideGemmParams& p, const Args& args, cudaStream_t stream) {
  using L = Layout<kN, kGroups>;
  const int cluster = kPair * args.split;
  const int most = args.split == 1 ? num_sms() / cluster : args.num_items;
  const int waves = div_up(args.num_items, most);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(div_up(args.num_items, waves) * cluster));
  shape.block = dim3(L::kThreads);
  shape.smem_bytes = L::kSmemBytes;
  shape.pdl = p.pdl;
  shape.cluster = cluster;
  return launch(wide_kernel<T, kN, kGroups, kGated, kPair>, shape, stream, args);
}

template <int kN, int kGroups, bool kGated>
cudaError_t run_tile(const WideGemmParams& p, const Args& args, int pair, cudaStream_t stream) {
  const bool bf16 = p.dtype == Dtype::kBF16;
  if (pair == 2) {
    return bf16 ? launch_wide<__nv_bfloat16, kN, kGroups, kGated, 2>(p, args, stream)
                : launch_wide<__half, kN, kGroups, kGated, 2>(p, args, stream);
  }
  return bf16 ? launch_wide<__nv_bfloat16, kN, kGroups, kGated, 1>(p, args, stream)
              : launch_wide<__half, kN, kGroups, kGated, 1>(p, args, stream);
}

}  // namespace srt::cuda::wide
