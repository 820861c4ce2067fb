// The wide GEMM in e4m3: up to 128 rows of x are the M side of wgmma, kN weight rows its N side.
//
// Shapes    see WideFp8Params. A CTA owns all rows of x, kN rows of w and a share of k.
// Parallel  one producer warp feeds the copy engine; two consumer warpgroups, of 64 rows of x each,
//           run wgmma. Without a split, CTAs are persistent over tiles. With a split, the CTAs of
//           a cluster share a tile along k, and each finishes the rows of some warps: the others
//           send it their sums through distributed shared memory.
// Bound     HBM: n * k bytes. x is read once per tile, from L2.
// Overlap   the producer fills the pipeline with weights before grid_wait(): only x and its scales
//           depend on the previous kernel.
// Numerics  every 128 values of k are summed in the tensor cores (at about 14 bits), and those sums
//           in float32; split ranks in order. Scales multiply in float32; one rounding to bf16.
#pragma once

#include "gemm/wgmma_fp8.cuh"
#include "gemm/wide_fp8_epilogue.cuh"
#include "gemm/wide_fp8_produce.cuh"

namespace srt::cuda::wide_fp8 {

using namespace hopper;

// Sums of half a block's columns join acc while the products of the other half run.
template <int kN>
struct Accumulator {
  static constexpr int kPart = Layout<kN>::kPart;
  const Smem<kN>& smem;
  int stages;
  int group;        // warpgroup
  int row;          // of x: this thread's first one; the other is 8 below
  bool has_scales;  // x has them for groups along k

  __device__ __forceinline__ void start(float (&part)[kPart / 2], int stage, int half) const {
    const uint64_t x = k_major_descriptor(smem.x(stage) + group * 64 * kBlockK);
    const uint64_t w = k_major_descriptor(smem.w(stage) + half * kPart * kBlockK);
    fence_registers(part);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kBlockK / 32; ++k) WgmmaE4m3<kPart>::run(part, x + 2 * k, w + 2 * k, k > 0);
    wgmma_commit();
    fence_registers(part);
  }
  // The scales of this thread's rows in the block of a stage that has arrived.
  __device__ __forceinline__ float2 scales(int stage) const {
    if (!has_scales) return {1.0f, 1.0f};
    const uint32_t at = smem.x_scales + (stage * kRows + row) * 4;
    return {ptx::load_shared(at), ptx::load_shared(at + 32)};
  }
  __device__ __forceinline__ void join(float (&acc)[kN / 2], float (&part)[kPart / 2], int half,
                                       float2 scale) const {
    fence_registers(part);
#pragma unroll
    for (int i = 0; i < kPart / 2; ++i)
      acc[half * (kPart / 2) + i] += part[i] * (i % 4 < 2 ? scale.x : scale.y);
  }
  __device__ __forceinline__ void release(int stage) const {
    barrier_arrive(smem.empty + 8 * stage);  // each lane has read scales of the stage
  }

  // The first block has arrived.
  __device__ __forceinline__ void run(float (&acc)[kN / 2], Cursor& cursor, int blocks) const {
    float even[kPart / 2];
    float odd[kPart / 2];
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) acc[i] = 0.0f;
    start(even, cursor.stage, 0);
    for (int b = 1; b < blocks; ++b) {
      const int stage = cursor.stage;
      const float2 scale = scales(stage);
      start(odd, stage, 1);
      wgmma_wait<1>();
      join(acc, even, 0, scale);
      cursor.advance(stages);
      barrier_wait(smem.full + 8 * cursor.stage, cursor.phase);
      start(even, cursor.stage, 0);
      wgmma_wait<1>();
      release(stage);
      join(acc, odd, 1, scale);
    }
    const float2 scale = scales(cursor.stage);
    if (blocks > 0) {  // always; without a condition here, ptxas serializes all products
      start(odd, cursor.stage, 1);
      wgmma_wait<1>();
      join(acc, even, 0, scale);
      wgmma_wait<0>();
      join(acc, odd, 1, scale);
    } else {
      wgmma_wait<0>();
      join(acc, even, 0, scale);
    }
    release(cursor.stage);
    cursor.advance(stages);
  }
};

// Where the rank `from` of a split leaves a warp's sums for the one that finishes them.
template <int kN>
__device__ __forceinline__ uint32_t exchange_slot(const Smem<kN>& smem, int split, int owner,
                                                  int from, int warp) {
  const int source = from < owner ? from : from - 1;
  const int slot = source * div_up(kWarps, split) + warp - first_warp(owner, split);
  return smem.exchange + slot * Layout<kN>::kWarpBytes + static_cast<int>(threadIdx.x) % 32 * 16;
}

template <int kN>
__device__ __forceinline__ void send(const Smem<kN>& smem, const float (&acc)[kN / 2], int split,
                                     int owner, int rank, int warp) {
  const uint32_t at = map_to_rank(exchange_slot(smem, split, owner, rank, warp), owner);
#pragma unroll
  for (int i = 0; i < kN / 8; ++i)
    store_remote(at + i * 512, {acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]});
}

template <int kN>
__device__ __forceinline__ void receive(const Smem<kN>& smem, float (&acc)[kN / 2], int split,
                                        int rank, int warp) {
  for (int from = 0; from < split; ++from) {
    if (from == rank) continue;
    const uint32_t at = exchange_slot(smem, split, rank, from, warp);
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      const float2 lo = ptx::load_shared2(at + i * 512);
      const float2 hi = ptx::load_shared2(at + i * 512 + 8);
      acc[4 * i] += lo.x, acc[4 * i + 1] += lo.y, acc[4 * i + 2] += hi.x, acc[4 * i + 3] += hi.y;
    }
  }
}

// The scales of this thread's rows; the first block of x has arrived, and with it the end of the
// kernel that wrote them.
__device__ __forceinline__ void load_x_scales(const Args& a, Fragment& f) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
    f.x_scale[r] = f.has_row(a, r) && a.x_scale_stride == 0
                       ? __ldcg(a.x_scales + (f.row + 8 * r) * a.x_scale_step)
                       : 1.0f;
}

template <int kN>
__device__ void consume(const Args& a, const Smem<kN>& smem, KRange k, int rank, int first_tile,
                        int tile_step) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Fragment f;
  f.row = warp * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  const bool has_rows = warp * 16 < a.m;
  const Accumulator<kN> sums{smem, a.stages, warp / 4, f.row, a.x_scale_stride != 0};
  Cursor cursor;
  int nth = 0;
  float acc[kN / 2];
  for (int tile = first_tile; tile < a.num_tiles; tile += tile_step, ++nth) {
    barrier_wait(smem.full + 8 * cursor.stage, cursor.phase);
    if (nth == 0) load_x_scales(a, f);
    sums.run(acc, cursor, k.end - k.begin);
    f.tile = tile;
    f.w_scales = smem.w_scales + nth % 2 * kN * 4;
    if (a.split == 1 && has_rows) write_tile<kN>(a, acc, f);
  }
  if (a.split == 1) return;
  const int owner = warp * a.split / kWarps;
  __syncwarp();
  cluster_wait();  // all ranks have begun
  if (has_rows && owner != rank) send<kN>(smem, acc, a.split, owner, rank, warp);
  __syncwarp();
  cluster_arrive();
  cluster_wait();  // all sums are in place
  if (has_rows && owner == rank) {
    receive<kN>(smem, acc, a.split, rank, warp);
    write_tile<kN>(a, acc, f);
  }
}

template <int kN>
__global__ void __launch_bounds__(kThreads, 1) wide_fp8_kernel(const __grid_constant__ Args a) {
  extern __shared__ uint8_t raw[];
  const Smem<kN> smem(round_up(ptx::smem_address(raw), 1024u), a.stages, a.split);
  const int rank = static_cast<int>(blockIdx.x) % a.split;
  const int tile = static_cast<int>(blockIdx.x) / a.split;
  const int tile_step = a.split == 1 ? static_cast<int>(gridDim.x) : a.num_tiles;
  if (threadIdx.x == kConsumers) {
    prefetch_map(&a.w_map);
    prefetch_map(&a.x_map);
    for (int s = 0; s < a.stages; ++s) {
      barrier_init(smem.full + 8 * s, 1);
      barrier_init(smem.empty + 8 * s, kWarps * 32);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (a.split > 1) cluster_arrive();
  const KRange k = k_range(a, rank);
  if (threadIdx.x < kConsumers) return consume<kN>(a, smem, k, rank, tile, tile_step);
  if (threadIdx.x == kConsumers) produce<kN>(a, smem, k, tile, tile_step);
  __syncwarp();
  if (a.split == 1) return;
  cluster_wait();
  cluster_arrive();
  cluster_wait();
}

}  // namespace srt::cuda::wide_fp8
