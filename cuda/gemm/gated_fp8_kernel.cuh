// The gated GEMM in e4m3: up to 128 rows of x are the M side of wgmma, weight rows its N side.
//
// Shapes    see GatedFp8Params. A CTA owns all rows of x and, for 128 columns of y, as many rows of
//           gate and the rows of up that match: a whole group of columns that share a scale.
// Parallel  one producer warp feeds the copy engine; two consumer warpgroups, of 64 rows of x each,
//           run wgmma: each covers the other's additions. CTAs are persistent over tiles.
// Bound     HBM: n * k bytes. x is read once per tile, from L2.
// Overlap   the producer fills the pipeline with weights before grid_wait(): only x and its scales
//           depend on the previous kernel.
// Numerics  every 128 values of k are summed in the tensor cores (at about 14 bits), and those sums
//           in float32. Scales multiply in float32; gate, up, silu and the product each round to
//           bf16, and e4m3 rounds once more.
#pragma once

#include "gemm/gated_fp8_epilogue.cuh"
#include "gemm/gated_fp8_produce.cuh"
#include "gemm/wgmma_fp8.cuh"

namespace srt::cuda::gated_fp8 {

using namespace hopper;

// Sums of 64 weight rows join acc while the products of the next 64 run.
struct Accumulator {
  const Args& a;
  const Smem& smem;
  int group;  // warpgroup

  __device__ __forceinline__ void start(float (&part)[kPart / 2], const Cursor& at, int nth) const {
    const uint64_t x = k_major_descriptor(smem.x(at.x_stage) + group * 64 * kBlockK);
    const uint64_t w = k_major_descriptor(smem.w(at.stage) + nth * kPart * kBlockK);
    fence_registers(part);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kBlockK / 32; ++k) WgmmaE4m3<kPart>::run(part, x + 2 * k, w + 2 * k, k > 0);
    wgmma_commit();
    fence_registers(part);
  }
  __device__ __forceinline__ void join(float (&acc)[kSums], float (&part)[kPart / 2],
                                       int nth) const {
    fence_registers(part);
#pragma unroll
    for (int i = 0; i < kPart / 2; ++i) acc[nth * (kPart / 2) + i] += part[i];
  }
  __device__ __forceinline__ void release(int stage) const {
    barrier_arrive(smem.empty + 8 * stage);  // each lane has read scales of the stage
  }
  // All parts of a block but the first, which is under way in `even`; the last is left in `odd`.
  __device__ __forceinline__ void middle(float (&acc)[kSums], float (&even)[kPart / 2],
                                         float (&odd)[kPart / 2], const Cursor& at) const {
#pragma unroll
    for (int nth = 1; nth < kParts; nth += 2) {
      start(odd, at, nth);
      wgmma_wait<1>();
      join(acc, even, nth - 1);
      if (nth + 1 == kParts) break;
      start(even, at, nth + 1);
      wgmma_wait<1>();
      join(acc, odd, nth);
    }
  }

  // The first block has arrived.
  __device__ __forceinline__ void run(float (&acc)[kSums], Cursor& cursor) const {
    float even[kPart / 2];
    float odd[kPart / 2];
#pragma unroll
    for (int i = 0; i < kSums; ++i) acc[i] = 0.0f;
    start(even, cursor, 0);
    for (int b = 1; b < a.num_k_blocks; ++b) {
      middle(acc, even, odd, cursor);
      const int stage = cursor.stage;
      cursor.advance(a);
      barrier_wait(smem.full + 8 * cursor.stage, cursor.phase);
      start(even, cursor, 0);
      wgmma_wait<1>();
      release(stage);
      join(acc, odd, kParts - 1);
    }
    if (a.num_k_blocks > 0) {  // always; without a condition here, ptxas serializes all products
      middle(acc, even, odd, cursor);
      wgmma_wait<0>();
      join(acc, odd, kParts - 1);
    } else {
      wgmma_wait<0>();
      join(acc, even, 0);
    }
    release(cursor.stage);
    cursor.advance(a);
  }
};

// The scales of this thread's rows; the first block of x has arrived, and with it the end of the
// kernel that wrote them.
__device__ __forceinline__ void load_x_scales(const Args& a, Fragment& f) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
    f.x_scale[r] = f.has_row(a, r) ? __ldcg(a.x_scales + (f.row + 8 * r) * a.x_scale_step) : 1.0f;
}

__device__ void consume(const Args& a, const Smem& smem) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Fragment f;
  f.row = warp * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  f.nth = 0;
  const bool has_rows = warp * 16 < a.m;
  const Accumulator sums{a, smem, warp / 4};
  Cursor cursor;
  float acc[kSums];
  const int step = static_cast<int>(gridDim.x);
  for (f.tile = static_cast<int>(blockIdx.x); f.tile < a.num_tiles; f.tile += step, ++f.nth) {
    barrier_wait(smem.full + 8 * cursor.stage, cursor.phase);
    if (f.nth == 0) load_x_scales(a, f);
    sums.run(acc, cursor);
    if (has_rows) write_tile(a, acc, smem, f);
  }
}

__global__ void __launch_bounds__(kThreads, 1) gated_fp8_kernel(const __grid_constant__ Args a) {
  extern __shared__ uint8_t raw[];
  const Smem smem(round_up(ptx::smem_address(raw), 1024u), a.stages, a.x_stages);
  if (threadIdx.x == kConsumers) {
    prefetch_map(&a.w_map);
    prefetch_map(&a.x_map);
    for (int s = 0; s < a.stages; ++s) {
      barrier_init(smem.full + 8 * s, 1);
      barrier_init(smem.empty + 8 * s, kConsumers);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    lower_registers<kProducerRegisters>();
    if (threadIdx.x == kConsumers) produce(a, smem);
  } else {
    raise_registers<kConsumerRegisters>();
    consume(a, smem);
  }
}

}  // namespace srt::cuda::gated_fp8
