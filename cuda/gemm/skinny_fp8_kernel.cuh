// The skinny GEMM in e4m3: weight rows are the M side of wgmma, the few rows of x its N side.
//
// Shapes    see SkinnyFp8Params. A CTA owns kGroups * 64 rows of w (gated: half of them gate rows,
//           the other half the up rows that match) and a share of k.
// Parallel  as gemm/skinny_kernel.cuh: one producer warp feeds the copy engine, kGroups consumer
//           warpgroups run wgmma. Without a split, CTAs are persistent over tiles. With a split,
//           the CTAs of a cluster share a tile along k and reduce over distributed shared memory.
// Bound     HBM: n * k bytes. x is read once per tile, from L2.
// Overlap   the producer fills the pipeline with weights before grid_wait(): only x and its scales
//           depend on the previous kernel.
// Numerics  every 128 values of k are summed in the tensor cores, and those sums in float32
// (kPromote;
//           without it, the tensor cores sum all of k at about 14 bits). Scales multiply in
//           float32; one rounding to bf16 (gated: gate, up, silu and the product each round).
#pragma once

#include "common/fp8.cuh"
#include "common/hopper.cuh"
#include "common/launch.h"
#include "gemm/skinny_fp8.h"
#include "gemm/wgmma_fp8.cuh"

namespace srt::cuda::skinny_fp8 {

using namespace hopper;
using Out = __nv_bfloat16;

constexpr int kBlockK = 128;    // bytes: one swizzle row
constexpr int kGroupRows = 64;  // rows of w per warpgroup, wgmma's M
constexpr int kMaxSplit = 8;
constexpr int kMaxShallowRows = 32;  // up to so many rows of x both depths are built

// kDeep: one CTA fills an SM, for matrices large enough that only bandwidth counts. Otherwise two
// fit, and the next kernel's CTAs settle beside this one's.
template <int kM, int kGroups, bool kDeep>
struct Layout {
  static constexpr int kTileRows = kGroups * kGroupRows;
  static constexpr int kWBytes = kTileRows * kBlockK;
  static constexpr int kXBytes = kM * kBlockK;
  static constexpr int kStageBytes = kWBytes + kXBytes;
  static constexpr int kBudget = kDeep ? 176 * 1024 : 100 * 1024;
  static constexpr int kStages = kBudget / kStageBytes;
  static constexpr int kConsumers = kGroups * 128;
  static constexpr int kThreads = kConsumers + 32;
  static constexpr int kPadRows = kTileRows + 8;  // staging row, conflict-free
  static constexpr int kStagingBytes = kM * kPadRows * 2;
  static constexpr int kPartialStride = kTileRows + 4;  // floats
  static constexpr int kPart = kM < 64 ? kM : 64;       // columns of one wgmma
  // Registers for sums on both sides of the promotion; 4 warpgroups have 96 a thread.
  static constexpr bool kPromote = kGroups < 4 || kM < 128;
  static_assert(kM * kPartialStride * 4 <= kStages * kStageBytes, "partials reuse the pipeline");
  static constexpr size_t kSmemBytes =
      1024 + static_cast<size_t>(kStages) * kStageBytes + kStagingBytes + 2 * 8 * kStages + kM * 4;
  static_assert(kSmemBytes <= 227 * 1024, "more than an SM has");
};

inline bool is_deep(const SkinnyFp8Params& p) {
  constexpr int64_t kBytes = int64_t{32} << 20;
  return p.m > kMaxShallowRows || p.grouped || static_cast<int64_t>(p.n) * p.k >= kBytes;
}

struct Args {
  CUtensorMap w_map;
  CUtensorMap x_map;
  const float* x_scales;
  const float* w_scales;
  const Out* bias;
  void* y;
  const float* y_scale;
  int64_t y_stride;
  int x_scale_step;  // 0: one scale for all rows
  int m;
  int n;  // rows of w
  int num_tiles;
  int num_k_blocks;
  int split;
};

struct KRange {  // the k blocks of one cluster rank
  int begin;
  int end;
};
__device__ __forceinline__ KRange k_range(const Args& a, int rank) {
  return {a.num_k_blocks * rank / a.split, a.num_k_blocks * (rank + 1) / a.split};
}

// The row of w that is row `local` of a tile.
template <int kGroups, bool kGated>
__device__ __forceinline__ int weight_row(const Args& a, int tile, int local) {
  constexpr int kTileRows = kGroups * kGroupRows;
  if constexpr (kGated) {
    constexpr int kHalf = kTileRows / 2;
    return local < kHalf ? tile * kHalf + local : a.n / 2 + tile * kHalf + local - kHalf;
  }
  return tile * kTileRows + local;
}

template <int kGroups, bool kGated>
__device__ __forceinline__ void load_weights(const Args& a, uint32_t stage, uint32_t bar, int tile,
                                             int block) {
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    load_box(stage + g * kGroupRows * kBlockK, &a.w_map, bar, block * kBlockK,
             weight_row<kGroups, kGated>(a, tile, g * kGroupRows), kEvictFirst);
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
  for (int i = 0; i < ahead; ++i) {
    const uint32_t bar = full + 8 * i;
    barrier_expect_bytes(bar, L::kStageBytes);
    load_weights<kGroups, kGated>(a, smem + i * L::kStageBytes, bar,
                                  first_tile + i / per_tile * tile_step, k.begin + i % per_tile);
  }
  ptx::grid_wait();  // x comes from the previous kernel
  for (int i = 0; i < ahead; ++i) {
    load_box(smem + i * L::kStageBytes + L::kWBytes, &a.x_map, full + 8 * i,
             (k.begin + i % per_tile) * kBlockK, 0, kEvictLast);
  }
  for (int i = ahead; i < total; ++i) {
    const int s = i % L::kStages;
    const uint32_t bar = full + 8 * s;
    const int block = k.begin + i % per_tile;
    barrier_wait(empty + 8 * s, (i / L::kStages - 1) & 1);
    barrier_expect_bytes(bar, L::kStageBytes);
    load_weights<kGroups, kGated>(a, smem + s * L::kStageBytes, bar,
                                  first_tile + i / per_tile * tile_step, block);
    load_box(smem + s * L::kStageBytes + L::kWBytes, &a.x_map, bar, block * kBlockK, 0, kEvictLast);
  }
  if (total > ahead) ptx::grid_launch();  // all loads are on their way
}

// One wgmma's share of a block's sums, joined to acc. Plain: added. Grouped: times the scales of
// this thread's two rows of w and of its columns.
template <int kM, bool kGrouped>
struct Joiner {
  const Args& a;
  const float* w_scales;  // of this thread's first row; the second is 8 rows on
  bool has_rows[2];

  template <int kPart>
  __device__ __forceinline__ void join(float (&acc)[kM / 2], const float (&part)[kPart / 2],
                                       int half, int block) const {
    float row_scale[2] = {1.0f, 1.0f};
    if constexpr (kGrouped) {
#pragma unroll
      for (int r = 0; r < 2; ++r)
        row_scale[r] = has_rows[r] ? __ldg(w_scales + r * 8 * a.num_k_blocks + block) : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kPart / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int at = half * (kPart / 2) + 4 * j + c;
        if constexpr (kGrouped) {
          const int col = half * kPart + 8 * j + static_cast<int>(threadIdx.x) % 4 * 2 + c;
          const float x_scale =
              col < a.m ? __ldcg(a.x_scales + static_cast<int64_t>(col) * a.num_k_blocks + block)
                        : 0.0f;
          acc[at] += part[4 * j + c] * (row_scale[0] * x_scale);
          acc[at + 2] += part[4 * j + c + 2] * (row_scale[1] * x_scale);
        } else {
          acc[at] += part[4 * j + c];
          acc[at + 2] += part[4 * j + c + 2];
        }
      }
    }
  }
};

// Starts the products of one block: rows [half * kPart, …) of x.
template <int kPart>
__device__ __forceinline__ void multiply(float (&part)[kPart / 2], uint64_t w, uint64_t x,
                                         bool keep) {
  fence_registers(part);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kBlockK / 32; ++k)
    WgmmaE4m3<kPart>::run(part, w + 2 * k, x + 2 * k, keep || k > 0);
  wgmma_commit();
  fence_registers(part);
}

// Sums kept in float32: while a block's products run, those of the one before are joined.
template <int kM, int kGroups, bool kDeep, bool kGrouped>
__device__ __forceinline__ void accumulate_promoted(float (&acc)[kM / 2], uint32_t smem,
                                                    uint32_t full, uint32_t empty, int group,
                                                    KRange range, int& cursor,
                                                    const Joiner<kM, kGrouped>& joiner) {
  using L = Layout<kM, kGroups, kDeep>;
  constexpr int kPart = L::kPart;
  constexpr int kHalves = kM / kPart;
  const bool leader = threadIdx.x % 32 == 0;  // each warp releases a stage for itself
#pragma unroll
  for (int i = 0; i < kM / 2; ++i) acc[i] = 0.0f;
  float even[kPart / 2];
  const int units = (range.end - range.begin) * kHalves;  // a unit is a wgmma's share of a block
  const int first = cursor;
  const auto start = [&](int u, float (&part)[kPart / 2]) {
    const int half = u % kHalves;
    const int s = (first + u / kHalves) % L::kStages;
    if (half == 0) barrier_wait(full + 8 * s, ((first + u / kHalves) / L::kStages) & 1);
    const uint32_t stage = smem + s * L::kStageBytes;
    multiply<kPart>(part, k_major_descriptor(stage + group * kGroupRows * kBlockK),
                    k_major_descriptor(stage + L::kWBytes + half * kPart * kBlockK), false);
  };
  const auto finish = [&](int u, float (&part)[kPart / 2], int half) {
    fence_registers(part);
    if (leader && half == kHalves - 1)
      barrier_arrive(empty + 8 * ((first + u / kHalves) % L::kStages));
    joiner.template join<kPart>(acc, part, half, range.begin + u / kHalves);
  };
  cursor += range.end - range.begin;
  if constexpr (!(kGroups < 4 && (kM < 64 || !kGrouped))) {  // no registers for two shares
    for (int u = 0; u < units; u += kHalves) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        start(u + half, even);
        wgmma_wait<0>();
        finish(u + half, even, half);
      }
    }
    return;
  }
  float odd[kPart / 2];
  start(0, even);
  int u = 1;  // the unit before it is under way, in `even`
  for (; u + 1 < units; u += 2) {
    start(u, odd);
    wgmma_wait<1>();
    finish(u - 1, even, 0);
    start(u + 1, even);
    wgmma_wait<1>();
    finish(u, odd, kHalves - 1);
  }
  if (u < units) {
    start(u, odd);
    wgmma_wait<1>();
    finish(u - 1, even, 0);
    wgmma_wait<0>();
    finish(u, odd, kHalves - 1);
  } else {
    wgmma_wait<0>();
    finish(u - 1, even, 0);
  }
}

// Sums kept in the tensor cores.
template <int kM, int kGroups, bool kDeep>
__device__ __forceinline__ void accumulate_in_place(float (&acc)[kM / 2], uint32_t smem,
                                                    uint32_t full, uint32_t empty, int group,
                                                    int blocks, int& cursor) {
  using L = Layout<kM, kGroups, kDeep>;
  const bool leader = threadIdx.x % 32 == 0;
  for (int i = 0; i < blocks; ++i, ++cursor) {
    const int s = cursor % L::kStages;
    barrier_wait(full + 8 * s, (cursor / L::kStages) & 1);
    const uint32_t stage = smem + s * L::kStageBytes;
    multiply<kM>(acc, k_major_descriptor(stage + group * kGroupRows * kBlockK),
                 k_major_descriptor(stage + L::kWBytes), i > 0);
    wgmma_wait<1>();  // the block before this one has been read
    if (leader && i > 0) barrier_arrive(empty + 8 * ((cursor - 1) % L::kStages));
  }
  wgmma_wait<0>();
  fence_registers(acc);
  if (leader) barrier_arrive(empty + 8 * ((cursor - 1) % L::kStages));
}

// The first row of the tile that this thread's fragment holds; the other is 8 rows on.
__device__ __forceinline__ int fragment_row() {
  const int t = static_cast<int>(threadIdx.x) % 128;
  return static_cast<int>(threadIdx.x) / 128 * kGroupRows + t / 32 * 16 + t % 32 / 4;
}

template <int kM, int kGroups, bool kGated, bool kDeep, bool kGrouped>
__device__ __forceinline__ void accumulate(const Args& a, float (&acc)[kM / 2], uint32_t smem,
                                           uint32_t full, uint32_t empty, int tile, KRange range,
                                           int& cursor) {
  using L = Layout<kM, kGroups, kDeep>;
  const int group = static_cast<int>(threadIdx.x) / 128;
  if constexpr (L::kPromote) {
    const int row = weight_row<kGroups, kGated>(a, tile, fragment_row());
    const Joiner<kM, kGrouped> joiner{
        a, a.w_scales + static_cast<int64_t>(row) * a.num_k_blocks, {row < a.n, row + 8 < a.n}};
    accumulate_promoted<kM, kGroups, kDeep, kGrouped>(acc, smem, full, empty, group, range, cursor,
                                                      joiner);
  } else {
    static_assert(!kGrouped, "grouped scales need the promotion");
    accumulate_in_place<kM, kGroups, kDeep>(acc, smem, full, empty, group, range.end - range.begin,
                                            cursor);
  }
}

// Hands this thread's accumulators to `store(row of the tile, row of x, value)`.
template <int kM, typename Store>
__device__ __forceinline__ void scatter(const float (&acc)[kM / 2], Store store) {
  const int row = fragment_row();
#pragma unroll
  for (int j = 0; j < kM / 8; ++j) {
    const int col = 8 * j + static_cast<int>(threadIdx.x) % 4 * 2;
    store(row, col, acc[4 * j]);
    store(row, col + 1, acc[4 * j + 1]);
    store(row + 8, col, acc[4 * j + 2]);
    store(row + 8, col + 1, acc[4 * j + 3]);
  }
}

__device__ __forceinline__ float rounded(float v) {
  return static_cast<float>(static_cast<Out>(v));
}

__device__ __forceinline__ float silu_mul(float gate, float up) {
  const float g = rounded(gate);
  return rounded(g / (1.0f + __expf(-g))) * rounded(up);
}

// Eight output columns at once.
__device__ __forceinline__ void store8(const Args& a, const float (&v)[8], int row, int col) {
  if (a.y_scale != nullptr) {
    const float inverse = 1.0f / __ldg(a.y_scale);
    float scaled[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) scaled[i] = rounded(v[i]) * inverse;
    store_fp8_vec<Fp8::kE4M3>(static_cast<uint8_t*>(a.y) + row * a.y_stride + col, scaled);
    return;
  }
  union {
    uint4 bits;
    Out values[8];
  } out;
#pragma unroll
  for (int i = 0; i < 8; ++i) out.values[i] = static_cast<Out>(v[i]);
  *reinterpret_cast<uint4*>(static_cast<Out*>(a.y) + row * a.y_stride + col) = out.bits;
}

// What a finished sum of row `n` of w becomes, but for the scale of x.
template <bool kGrouped>
__device__ __forceinline__ float w_scale_at(const Args& a, int n) {
  if (kGrouped || n >= a.n) return 1.0f;
  return __ldg(a.w_scales + n);
}
__device__ __forceinline__ float bias_at(const Args& a, int n) {
  return a.bias == nullptr || n >= a.n ? 0.0f : static_cast<float>(a.bias[n]);
}

// Writes a finished tile from `value(row of the tile, row of x)`; thread `t` of `threads`.
template <int kM, int kGroups, bool kGated, typename Value>
__device__ __forceinline__ void write_tile(const Args& a, int tile, int m_begin, int m_step, int t,
                                           int threads, Value value) {
  constexpr int kCols = kGated ? kGroups * kGroupRows / 2 : kGroups * kGroupRows;
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
      value(local + kCols, row, up);
#pragma unroll
      for (int c = 0; c < 8; ++c) v[c] = silu_mul(v[c], up[c]);
    }
    store8(a, v, row, col);
  }
}

// The scales of x's rows in shared memory. Called once the first block has arrived: then the kernel
// that wrote them has ended.
template <int kM, bool kGrouped>
__device__ __forceinline__ void load_x_scales(const Args& a, float* x_scales) {
  const int t = static_cast<int>(threadIdx.x);
  if (t >= kM) return;
  const bool plain = !kGrouped && t < a.m;
  x_scales[t] = plain ? __ldcg(a.x_scales + t * a.x_scale_step) : 1.0f;
}

template <int kM, int kGroups, bool kGated, bool kDeep, bool kGrouped>
__device__ void consume_tiles(const Args& a, uint32_t smem, uint32_t full, uint32_t empty,
                              Out* staging, float* x_scales) {
  using L = Layout<kM, kGroups, kDeep>;
  int cursor = 0;
  for (int tile = blockIdx.x; tile < a.num_tiles; tile += gridDim.x) {
    float acc[kM / 2];
    const int first = weight_row<kGroups, kGated>(a, tile, fragment_row());
    const float scale[2] = {w_scale_at<kGrouped>(a, first), w_scale_at<kGrouped>(a, first + 8)};
    const float bias[2] = {bias_at(a, first), bias_at(a, first + 8)};
    if (cursor == 0) {
      barrier_wait(full, 0);
      load_x_scales<kM, kGrouped>(a, x_scales);
    }
    accumulate<kM, kGroups, kGated, kDeep, kGrouped>(a, acc, smem, full, empty, tile,
                                                     {0, a.num_k_blocks}, cursor);
    named_barrier(1, L::kConsumers);  // the previous tile has left the staging buffer
    scatter<kM>(acc, [&](int n, int m, float v) {
      const int which = n == fragment_row() ? 0 : 1;
      staging[m * L::kPadRows + n] = static_cast<Out>(v * scale[which] * x_scales[m] + bias[which]);
    });
    named_barrier(1, L::kConsumers);  // the staging buffer is complete
    write_tile<kM, kGroups, kGated>(a, tile, 0, 1, static_cast<int>(threadIdx.x), L::kConsumers,
                                    [&](int n, int m, float (&v)[8]) {
                                      const Out* at = staging + m * L::kPadRows + n;
#pragma unroll
                                      for (int i = 0; i < 8; ++i) v[i] = static_cast<float>(at[i]);
                                    });
  }
}

template <int kM, int kGroups, bool kGated, bool kDeep, bool kGrouped>
__device__ void consume_split(const Args& a, uint32_t smem, uint32_t full, uint32_t empty, int rank,
                              int tile, float* partial, float* x_scales) {
  using L = Layout<kM, kGroups, kDeep>;
  int cursor = 0;
  float acc[kM / 2];
  barrier_wait(full, 0);
  load_x_scales<kM, kGrouped>(a, x_scales);
  accumulate<kM, kGroups, kGated, kDeep, kGrouped>(a, acc, smem, full, empty, tile,
                                                   k_range(a, rank), cursor);
  named_barrier(1, L::kConsumers);  // all reads of the pipeline are done: partials may reuse it
  scatter<kM>(acc, [&](int n, int m, float v) { partial[m * L::kPartialStride + n] = v; });
}

template <int kM, int kGroups, bool kGated, bool kDeep, bool kGrouped>
__device__ void reduce_split(const Args& a, int tile, int rank, uint32_t partial,
                             const float* x_scales) {
  using L = Layout<kM, kGroups, kDeep>;
  write_tile<kM, kGroups, kGated>(
      a, tile, rank, a.split, static_cast<int>(threadIdx.x), L::kThreads,
      [&](int n, int m, float (&v)[8]) {
        const int first = weight_row<kGroups, kGated>(a, tile, n);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = 0.0f;
        for (int r = 0; r < a.split; ++r) {
          const uint32_t at = map_to_rank(partial + (m * L::kPartialStride + n) * 4, r);
          const float4 lo = load_remote(at);
          const float4 hi = load_remote(at + 16);
          v[0] += lo.x, v[1] += lo.y, v[2] += lo.z, v[3] += lo.w;
          v[4] += hi.x, v[5] += hi.y, v[6] += hi.z, v[7] += hi.w;
        }
#pragma unroll
        for (int i = 0; i < 8; ++i)
          v[i] = v[i] * w_scale_at<kGrouped>(a, first + i) * x_scales[m] + bias_at(a, first + i);
      });
}

template <int kM, int kGroups, bool kGated, bool kDeep, bool kGrouped>
__global__ void __launch_bounds__(Layout<kM, kGroups, kDeep>::kThreads, kDeep ? 1 : 2)
    skinny_fp8_kernel(const __grid_constant__ Args a) {
  using L = Layout<kM, kGroups, kDeep>;
  extern __shared__ uint8_t raw[];
  uint8_t* const base = raw + (1024 - ptx::smem_address(raw) % 1024) % 1024;
  const uint32_t smem = ptx::smem_address(base);
  uint8_t* const tail = base + L::kStages * L::kStageBytes;
  Out* const staging = reinterpret_cast<Out*>(tail);
  const uint32_t full = smem + L::kStages * L::kStageBytes + L::kStagingBytes;
  const uint32_t empty = full + 8 * L::kStages;
  float* const x_scales = reinterpret_cast<float*>(tail + L::kStagingBytes + 2 * 8 * L::kStages);
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
      consume_tiles<kM, kGroups, kGated, kDeep, kGrouped>(a, smem, full, empty, staging, x_scales);
    }
    return;
  }
  if (threadIdx.x == L::kConsumers) {
    produce<kM, kGroups, kGated, kDeep>(a, smem, full, empty, rank, tile, a.num_tiles);
  } else if (!is_producer) {
    consume_split<kM, kGroups, kGated, kDeep, kGrouped>(a, smem, full, empty, rank, tile,
                                                        reinterpret_cast<float*>(base), x_scales);
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();  // every rank's partials are in place
  reduce_split<kM, kGroups, kGated, kDeep, kGrouped>(a, tile, rank, smem, x_scales);
  cluster_arrive();
  cluster_wait();  // nobody leaves while others read its partials
}

template <int kM, int kGroups, bool kGated, bool kDeep, bool kGrouped>
cudaError_t launch_skinny(const SkinnyFp8Params& p, const Args& args, int ctas,
                          cudaStream_t stream) {
  using L = Layout<kM, kGroups, kDeep>;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(args.split == 1 ? ctas : args.num_tiles * args.split));
  shape.block = dim3(L::kThreads);
  shape.smem_bytes = L::kSmemBytes;
  shape.pdl = p.pdl;
  shape.cluster = args.split;
  return launch(skinny_fp8_kernel<kM, kGroups, kGated, kDeep, kGrouped>, shape, stream, args);
}

// The instances for a padded number of rows; `groups` as the launcher chose them.
template <int kM>
cudaError_t run_rows(const SkinnyFp8Params& p, const Args& args, int groups, int ctas,
                     cudaStream_t stream);
template <int kM>
cudaError_t run_grouped(const SkinnyFp8Params& p, const Args& args, int ctas, cudaStream_t stream);

}  // namespace srt::cuda::skinny_fp8
