// The skinny GEMM kernel: weight rows are the M side of wgmma, the few rows of x its N side.
//
// Shapes    see SkinnyGemmParams. A CTA owns kGroups * 64 rows of w (gated: 64 gate rows and the
//           64 up rows that match them) and a share of k.
// Parallel  one producer warp feeds the copy engine; kGroups consumer warpgroups run wgmma. Without
// a
//           split, CTAs are persistent over tiles, and the producer runs ahead into the next tile.
//           With a split, the CTAs of a cluster share a tile along k and reduce over distributed
//           shared memory in rank order.
// Bound     HBM: n * k * 2 bytes. x is read once per tile, from L2.
// Overlap   the producer fills the pipeline with weights before grid_wait(): only x depends on the
//           previous kernel.
// Numerics  fp32 accumulation; rounds once to the output type (gated: gate, up, silu and the
// product
//           each round, as the unfused operations do; gated has no bias).
#pragma once

#include "common/hopper.cuh"
#include "gemm/skinny.h"
#include "gemm/wgmma.cuh"

namespace srt::cuda::skinny {

using namespace hopper;

constexpr int kBlockK = 64;     // 128 bytes: one swizzle row
constexpr int kGroupRows = 64;  // rows of w per warpgroup, wgmma's M
constexpr int kMaxSplit = 8;

// kDeep: one CTA fills an SM, for matrices large enough that only bandwidth counts. Otherwise two
// fit, and the next kernel's CTAs settle beside this one's. (64 rows and more are always deep.)
template <int kM, int kGroups, bool kDeep>
struct Layout {
  static constexpr int kTileRows = kGroups * kGroupRows;
  static constexpr int kWBytes = kTileRows * 128;
  static constexpr int kXBytes = kM * 128;
  static constexpr int kStageBytes = kWBytes + kXBytes;
  static constexpr int kBudget = kDeep ? 176 * 1024 : 100 * 1024;
  static constexpr int kStages = kBudget / kStageBytes;
  static constexpr int kConsumers = kGroups * 128;
  static constexpr int kThreads = kConsumers + 32;
  static constexpr int kPadRows = kTileRows + 8;  // staging row, conflict-free
  static constexpr int kStagingBytes = kM * kPadRows * 2;
  static constexpr int kPartialStride = kTileRows + 4;  // floats
  static_assert(kM * kPartialStride * 4 <= kStages * kStageBytes, "partials reuse the pipeline");
  static constexpr size_t kSmemBytes =
      1024 + static_cast<size_t>(kStages) * kStageBytes + kStagingBytes + 2 * 8 * kStages;
};

// Up to this many rows both depths are built, and the size of w decides.
constexpr int kMaxShallowRows = 32;

inline bool is_deep(const SkinnyGemmParams& p) {
  constexpr int64_t kElements = int64_t{16} << 20;
  return p.m > kMaxShallowRows || static_cast<int64_t>(p.n) * p.k >= kElements;
}

struct Args {
  CUtensorMap w_map;
  CUtensorMap x_map;
  const void* bias;
  void* y;
  int64_t y_stride;
  int m;
  int n;  // rows of w
  int num_tiles;
  int num_k_blocks;
  int split;
};

template <typename T>
__device__ __forceinline__ float to_float(T v) {
  return static_cast<float>(v);
}

template <typename T>
__device__ __forceinline__ float round_to(float v) {
  return static_cast<float>(static_cast<T>(v));
}

template <typename T>
__device__ __forceinline__ float silu_mul(float gate, float up) {
  const float g = round_to<T>(gate);
  const float s = round_to<T>(g / (1.0f + __expf(-g)));
  return s * round_to<T>(up);
}

// The k blocks of cluster rank `rank`.
struct KRange {
  int begin;
  int end;
};
__device__ __forceinline__ KRange k_range(const Args& a, int rank) {
  return {a.num_k_blocks * rank / a.split, a.num_k_blocks * (rank + 1) / a.split};
}

template <int kM, int kGroups, bool kGated>
__device__ __forceinline__ void load_weights(const Args& a, uint32_t stage, uint32_t bar, int tile,
                                             int block) {
  if constexpr (kGated) {
    const int row = tile * kGroupRows;
    load_box(stage, &a.w_map, bar, block * kBlockK, row, kEvictFirst);
    load_box(stage + kGroupRows * 128, &a.w_map, bar, block * kBlockK, a.n / 2 + row, kEvictFirst);
  } else {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      load_box(stage + g * kGroupRows * 128, &a.w_map, bar, block * kBlockK,
               (tile * kGroups + g) * kGroupRows, kEvictFirst);
    }
  }
}

template <int kM, int kGroups, bool kGated, bool kDeep>
__device__ void produce(const Args& a, uint32_t smem, uint32_t full, uint32_t empty, int rank,
                        int first_tile, int tile_step) {
  using L = Layout<kM, kGroups, kDeep>;
  const KRange k = k_range(a, rank);
  const int per_tile = k.end - k.begin;
  const int my_tiles = first_tile < a.num_tiles ? div_up(a.num_tiles - first_tile, tile_step) : 0;
  const int total = my_tiles * per_tile;
  const int ahead = min(total, L::kStages);
  if (total == ahead) ptx::grid_launch();  // little to load: the next kernel may settle at once
  // Counted, for divisions would take as long as a block.
  int tile = first_tile;
  int block = k.begin;
  const auto advance = [&] {
    if (++block < k.end) return;
    block = k.begin;
    tile += tile_step;
  };
  for (int i = 0; i < ahead; ++i) {
    const uint32_t bar = full + 8 * i;
    barrier_expect_bytes(bar, L::kStageBytes);
    load_weights<kM, kGroups, kGated>(a, smem + i * L::kStageBytes, bar, tile, block);
    advance();
  }
  ptx::grid_wait();  // x comes from the previous kernel
  for (int i = 0, at = k.begin; i < ahead; ++i) {
    load_box(smem + i * L::kStageBytes + L::kWBytes, &a.x_map, full + 8 * i, at * kBlockK, 0,
             kEvictLast);
    at = at + 1 < k.end ? at + 1 : k.begin;
  }
  int s = 0;
  uint32_t phase = 0;
  for (int i = ahead; i < total; ++i) {
    const uint32_t bar = full + 8 * s;
    barrier_wait(empty + 8 * s, phase);
    barrier_expect_bytes(bar, L::kStageBytes);
    load_weights<kM, kGroups, kGated>(a, smem + s * L::kStageBytes, bar, tile, block);
    load_box(smem + s * L::kStageBytes + L::kWBytes, &a.x_map, bar, block * kBlockK, 0, kEvictLast);
    advance();
    if (++s == L::kStages) s = 0, phase ^= 1;
  }
  // All loads are on their way: the next kernel's weights follow while this one finishes.
  if (total > ahead) ptx::grid_launch();
}

// Writes this thread's accumulators to `at(row of the tile, row of x) = value`.
template <int kM, typename Store>
__device__ __forceinline__ void scatter(const float (&acc)[kM / 2], int group, Store store) {
  const int t = threadIdx.x % 128;
  const int row = group * kGroupRows + t / 32 * 16 + t % 32 / 4;
#pragma unroll
  for (int j = 0; j < kM / 8; ++j) {
    const int col = 8 * j + t % 4 * 2;
    store(row, col, acc[4 * j]);
    store(row, col + 1, acc[4 * j + 1]);
    store(row + 8, col, acc[4 * j + 2]);
    store(row + 8, col + 1, acc[4 * j + 3]);
  }
}

// Eight output columns at once.
template <typename T>
__device__ __forceinline__ void store8(const Args& a, const float (&v)[8], int row, int col) {
  union {
    uint4 bits;
    T values[8];
  } out;
#pragma unroll
  for (int i = 0; i < 8; ++i) out.values[i] = static_cast<T>(v[i]);
  *reinterpret_cast<uint4*>(static_cast<T*>(a.y) + row * a.y_stride + col) = out.bits;
}

// The bias of row `n` of w; 0 where there is none.
template <typename T>
__device__ __forceinline__ float bias_at(const Args& a, int n) {
  return a.bias == nullptr || n >= a.n ? 0.0f : to_float(static_cast<const T*>(a.bias)[n]);
}

// Writes a finished tile from `value(row of the tile, row of x)`; thread `t` of `threads`.
template <typename T, int kM, int kGroups, bool kGated, typename Value>
__device__ __forceinline__ void write_tile(const Args& a, int tile, int m_begin, int m_step, int t,
                                           int threads, Value value) {
  constexpr int kCols = kGated ? kGroupRows : kGroups * kGroupRows;
  const int num_cols = kGated ? a.n / 2 : a.n;
  for (int i = t; i < div_up(kM, m_step) * (kCols / 8); i += threads) {
    const int row = m_begin + i / (kCols / 8) * m_step;
    const int local = i % (kCols / 8) * 8;
    const int col = tile * kCols + local;
    if (row >= a.m || col >= num_cols) continue;
    float v[8];
    value(local, row, v);
    if constexpr (kGated) {
      float up[8];
      value(local + kGroupRows, row, up);
#pragma unroll
      for (int c = 0; c < 8; ++c) v[c] = silu_mul<T>(v[c], up[c]);
    }
    store8<T>(a, v, row, col);
  }
}

template <typename T, int kM, int kGroups, bool kDeep>
__device__ __forceinline__ void accumulate(float (&acc)[kM / 2], uint32_t smem, uint32_t full,
                                           uint32_t empty, int group, int blocks, int& cursor) {
  using L = Layout<kM, kGroups, kDeep>;
  const bool leader = threadIdx.x % 32 == 0;  // each warp releases a stage for itself
  for (int i = 0; i < blocks; ++i, ++cursor) {
    const int s = cursor % L::kStages;
    barrier_wait(full + 8 * s, (cursor / L::kStages) & 1);
    const uint64_t w = k_major_descriptor(smem + s * L::kStageBytes + group * kGroupRows * 128);
    const uint64_t x = k_major_descriptor(smem + s * L::kStageBytes + L::kWBytes);
    fence_registers(acc);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kBlockK / 16; ++k) {
      Wgmma<T, kM>::run(acc, w + 2 * k, x + 2 * k, i > 0 || k > 0);
    }
    wgmma_commit();
    fence_registers(acc);
    wgmma_wait<1>();  // the block before this one has been read
    if (leader && i > 0) barrier_arrive(empty + 8 * ((cursor - 1) % L::kStages));
  }
  wgmma_wait<0>();
  fence_registers(acc);
  if (leader) barrier_arrive(empty + 8 * ((cursor - 1) % L::kStages));
}

template <typename T, int kM, int kGroups, bool kGated, bool kDeep>
__device__ void consume_tiles(const Args& a, uint32_t smem, uint32_t full, uint32_t empty,
                              T* staging) {
  using L = Layout<kM, kGroups, kDeep>;
  const int group = static_cast<int>(threadIdx.x) / 128;
  int cursor = 0;
  for (int tile = blockIdx.x; tile < a.num_tiles; tile += gridDim.x) {
    float acc[kM / 2];
    accumulate<T, kM, kGroups, kDeep>(acc, smem, full, empty, group, a.num_k_blocks, cursor);
    named_barrier(1, L::kConsumers);  // the previous tile has left the staging buffer
    scatter<kM>(acc, group, [&](int n, int m, float v) {
      staging[m * L::kPadRows + n] = static_cast<T>(v + bias_at<T>(a, tile * L::kTileRows + n));
    });
    named_barrier(1, L::kConsumers);  // the staging buffer is complete
    write_tile<T, kM, kGroups, kGated>(a, tile, 0, 1, static_cast<int>(threadIdx.x), L::kConsumers,
                                       [&](int n, int m, float (&v)[8]) {
                                         const T* at = staging + m * L::kPadRows + n;
#pragma unroll
                                         for (int i = 0; i < 8; ++i) v[i] = to_float(at[i]);
                                       });
  }
}

template <typename T, int kM, int kGroups, bool kGated, bool kDeep>
__device__ void consume_split(const Args& a, uint32_t smem, uint32_t full, uint32_t empty, int rank,
                              float* partial) {
  using L = Layout<kM, kGroups, kDeep>;
  const int group = static_cast<int>(threadIdx.x) / 128;
  const KRange k = k_range(a, rank);
  int cursor = 0;
  float acc[kM / 2];
  accumulate<T, kM, kGroups, kDeep>(acc, smem, full, empty, group, k.end - k.begin, cursor);
  named_barrier(1,
                L::kConsumers);  // all wgmma reads of the pipeline are done: partials may reuse it
  scatter<kM>(acc, group, [&](int n, int m, float v) { partial[m * L::kPartialStride + n] = v; });
}

template <typename T, int kM, int kGroups, bool kGated, bool kDeep>
__device__ void reduce_split(const Args& a, int tile, int rank, uint32_t partial) {
  using L = Layout<kM, kGroups, kDeep>;
  write_tile<T, kM, kGroups, kGated>(a, tile, rank, a.split, static_cast<int>(threadIdx.x),
                                     L::kThreads, [&](int n, int m, float (&v)[8]) {
#pragma unroll
                                       for (int i = 0; i < 8; ++i)
                                         v[i] = bias_at<T>(a, tile * L::kTileRows + n + i);
                                       for (int r = 0; r < a.split; ++r) {
                                         const uint32_t at = map_to_rank(
                                             partial + (m * L::kPartialStride + n) * 4, r);
                                         const float4 lo = load_remote(at);
                                         const float4 hi = load_remote(at + 16);
                                         v[0] += lo.x, v[1] += lo.y, v[2] += lo.z, v[3] += lo.w;
                                         v[4] += hi.x, v[5] += hi.y, v[6] += hi.z, v[7] += hi.w;
                                       }
                                     });
}

template <typename T, int kM, int kGroups, bool kGated, bool kDeep>
__global__ void __launch_bounds__(Layout<kM, kGroups, kDeep>::kThreads)
    skinny_kernel(const __grid_constant__ Args a) {
  using L = Layout<kM, kGroups, kDeep>;
  extern __shared__ uint8_t raw[];
  uint8_t* const base = raw + (1024 - ptx::smem_address(raw) % 1024) % 1024;
  const uint32_t smem = ptx::smem_address(base);
  T* const staging = reinterpret_cast<T*>(base + L::kStages * L::kStageBytes);
  const uint32_t full = smem + L::kStages * L::kStageBytes + L::kStagingBytes;
  const uint32_t empty = full + 8 * L::kStages;
  const int rank = static_cast<int>(blockIdx.x) % a.split;
  const int tile = static_cast<int>(blockIdx.x) / a.split;
  const bool is_producer = threadIdx.x >= L::kConsumers;

  if (threadIdx.x == L::kConsumers) {
    prefetch_map(&a.w_map);
    prefetch_map(&a.x_map);
    for (int s = 0; s < L::kStages; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, kGroups * 4);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (a.split == 1) {
    if (threadIdx.x == L::kConsumers) {
      produce<kM, kGroups, kGated, kDeep>(a, smem, full, empty, 0, blockIdx.x, gridDim.x);
    } else if (!is_producer) {
      consume_tiles<T, kM, kGroups, kGated, kDeep>(a, smem, full, empty, staging);
    }
    return;
  }
  if (threadIdx.x == L::kConsumers) {
    produce<kM, kGroups, kGated, kDeep>(a, smem, full, empty, rank, tile, a.num_tiles);
  } else if (!is_producer) {
    consume_split<T, kM, kGroups, kGated, kDeep>(a, smem, full, empty, rank,
                                                 reinterpret_cast<float*>(base));
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();  // every rank's partials are in place
  reduce_split<T, kM, kGroups, kGated, kDeep>(a, tile, rank, smem);
  cluster_arrive();
  cluster_wait();  // nobody leaves while others read its partials
}

template <typename T, int kM, int kGroups, bool kGated, bool kDeep>
cudaError_t launch_skinny(const SkinnyGemmParams& p, const Args& args, int ctas,
                          cudaStream_t stream) {
  using L = Layout<kM, kGroups, kDeep>;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(args.split == 1 ? ctas : args.num_tiles * args.split));
  shape.block = dim3(L::kThreads);
  shape.smem_bytes = L::kSmemBytes;
  shape.pdl = p.pdl;
  shape.cluster = args.split;
  return launch(skinny_kernel<T, kM, kGroups, kGated, kDeep>, shape, stream, args);
}

}  // namespace srt::cuda::skinny
