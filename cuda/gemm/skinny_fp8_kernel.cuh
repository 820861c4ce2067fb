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
// Numerics  every 128 values of k are summed in the tensor cores (at about 14 bits), and those sums
//           in float32, times scales that change along k. Scales multiply in float32; one rounding
//           to bf16 (gated: gate, up, silu and the product each round; e4m3 rounds once more).
#pragma once

#include "gemm/skinny_fp8_epilogue.cuh"
#include "gemm/skinny_fp8_produce.cuh"
#include "gemm/skinny_fp8_sums.cuh"

namespace srt::cuda::skinny_fp8 {

template <int kM, int kGroups, bool kGated, bool kDeep, Scales kScales>
__device__ void consume_tiles(const Args& a, const Pipe& pipe, const Walk& walk, Out* staging,
                              Out* held, float* x_scales) {
  using L = Layout<kM, kGroups, kDeep>;
  int cursor = 0;
  const int count = walk.count(a.num_tiles);
  for (int nth = 0; nth < count; ++nth) {
    const int tile = walk.tile(nth);
    float acc[kM / 2];
    const int first = weight_row<kGroups, kGated>(a, tile, fragment_row());
    const float scale[2] = {w_scale_at<kScales>(a, first), w_scale_at<kScales>(a, first + 8)};
    const float bias[2] = {bias_at(a, first), bias_at(a, first + 8)};
    if (cursor == 0) {
      barrier_wait(pipe.full, 0);
      load_x_scales<kM, kScales>(a, x_scales);
    }
    accumulate<kM, kGroups, kGated, kDeep, kScales>(a, acc, pipe, tile, {0, a.num_k_blocks},
                                                    cursor);
    named_barrier(1, L::kConsumers);  // the previous tile has left the staging buffer
    scatter<kM>(acc, [&](int n, int m, float v) {
      const int which = n == fragment_row() ? 0 : 1;
      staging[m * L::kPadRows + n] = static_cast<Out>(v * scale[which] * x_scales[m] + bias[which]);
    });
    named_barrier(1, L::kConsumers);  // the staging buffer is complete
    if constexpr (kGated && kGroups >= 2) {
      if (a.y_scales != nullptr) {
        write_groups<kM, kGroups>(a, tile, staging, held);
        continue;
      }
    }
    write_tile<kM, kGroups, kGated>(a, tile, 0, 1, static_cast<int>(threadIdx.x), L::kConsumers,
                                    [&](int n, int m, float (&v)[8]) {
                                      const Out* at = staging + m * L::kPadRows + n;
#pragma unroll
                                      for (int i = 0; i < 8; ++i) v[i] = static_cast<float>(at[i]);
                                    });
  }
}

template <int kM, int kGroups, bool kGated, bool kDeep, Scales kScales>
__device__ void consume_split(const Args& a, const Pipe& pipe, int rank, int tile, float* partial,
                              float* x_scales) {
  using L = Layout<kM, kGroups, kDeep>;
  int cursor = 0;
  float acc[kM / 2];
  barrier_wait(pipe.full, 0);
  load_x_scales<kM, kScales>(a, x_scales);
  accumulate<kM, kGroups, kGated, kDeep, kScales>(a, acc, pipe, tile, k_range(a, rank), cursor);
  named_barrier(1, L::kConsumers);  // all reads of the pipeline are done: partials may reuse it
  scatter<kM>(acc, [&](int n, int m, float v) { partial[m * L::kPartialStride + n] = v; });
}

template <int kM, int kGroups, bool kGated, bool kDeep, Scales kScales>
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
          v[i] = v[i] * w_scale_at<kScales>(a, first + i) * x_scales[m] + bias_at(a, first + i);
      });
}

template <int kM, int kGroups, bool kGated, bool kDeep, Scales kScales>
__global__ void __launch_bounds__(Layout<kM, kGroups, kDeep>::kThreads, kDeep ? 1 : 2)
    skinny_fp8_kernel(const __grid_constant__ Args a) {
  using L = Layout<kM, kGroups, kDeep>;
  extern __shared__ uint8_t raw[];
  uint8_t* const base = raw + (1024 - ptx::smem_address(raw) % 1024) % 1024;
  const uint32_t smem = ptx::smem_address(base);
  uint8_t* const tail = base + L::kStages * L::kStageBytes;
  Out* const staging = reinterpret_cast<Out*>(tail);
  Out* const held = reinterpret_cast<Out*>(tail + L::kStagingBytes);
  uint8_t* const ring = tail + L::kStagingBytes + L::kHeldBytes;
  float* const x_scales = reinterpret_cast<float*>(ring + L::kStages * L::kStageExtra);
  Pipe pipe;
  pipe.stages = smem;
  pipe.x_scales = ptx::smem_address(ring);
  pipe.full = pipe.x_scales + L::kStages * kM * 4;
  pipe.empty = pipe.full + 8 * L::kStages;
  const int rank = static_cast<int>(blockIdx.x) % a.split;
  const int tile = static_cast<int>(blockIdx.x) / a.split;
  const bool is_producer = threadIdx.x >= L::kConsumers;

  if (threadIdx.x == L::kConsumers) {
    prefetch_map(&a.w_map);
    prefetch_map(&a.x_map);
    for (int s = 0; s < L::kStages; ++s) {
      barrier_init(pipe.full + 8 * s, 1);
      barrier_init(pipe.empty + 8 * s, kGroups * (kScales == Scales::kGroups ? 128 : 4));
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (a.split == 1) {
    const Walk walk{static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), a.paired};
    if (threadIdx.x == L::kConsumers) {
      produce<kM, kGroups, kGated, kDeep, kScales>(a, pipe, 0, walk);
    } else if (!is_producer) {
      consume_tiles<kM, kGroups, kGated, kDeep, kScales>(a, pipe, walk, staging, held, x_scales);
    }
    return;
  }
  if (threadIdx.x == L::kConsumers) {
    produce<kM, kGroups, kGated, kDeep, kScales>(a, pipe, rank, {tile, a.num_tiles, false});
  } else if (!is_producer) {
    consume_split<kM, kGroups, kGated, kDeep, kScales>(a, pipe, rank, tile,
                                                       reinterpret_cast<float*>(base), x_scales);
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();  // every rank's partials are in place
  reduce_split<kM, kGroups, kGated, kDeep, kScales>(a, tile, rank, smem, x_scales);
  cluster_arrive();
  cluster_wait();  // nobody leaves while others read its partials
}

// The instances for a padded number of rows; `groups` as the launcher chose them.
template <int kM, Scales kScales>
cudaError_t run_rows(const SkinnyFp8Params& p, const Args& args, int groups, int ctas,
                     cudaStream_t stream);
template <int kM>
cudaError_t run_blocks(const SkinnyFp8Params& p, const Args& args, int ctas, cudaStream_t stream);

}  // namespace srt::cuda::skinny_fp8
