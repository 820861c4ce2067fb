// The producer warp of the skinny fp8 GEMM: weights ahead of the previous kernel's end, then x.
#pragma once

#include "gemm/skinny_fp8_layout.cuh"

namespace srt::cuda::skinny_fp8 {

template <int kGroups, bool kGated>
__device__ __forceinline__ void load_weights(const Args& a, uint32_t stage, uint32_t bar, int tile,
                                             int block) {
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    load_box(stage + g * kGroupRows * kBlockK, &a.w_map, bar, block * kBlockK,
             weight_row<kGroups, kGated>(a, tile, g * kGroupRows), kEvictFirst);
  }
}

template <int kM, Scales kScales>
__device__ __forceinline__ void load_x(const Args& a, const Pipe& pipe, uint32_t to, int stage,
                                       int block) {
  const uint32_t bar = pipe.full + 8 * stage;
  load_box(to, &a.x_map, bar, block * kBlockK, 0, kEvictLast);
  if constexpr (kScales == Scales::kGroups) {
    load_bytes(pipe.x_scales + stage * kM * 4, a.x_scales + block * a.x_scale_stride,
               round_up(a.m, 8) * 4, bar);
  }
}

template <int kM, int kGroups, bool kGated, bool kDeep, Scales kScales>
__device__ void produce(const Args& a, const Pipe& pipe, int rank, const Walk& walk) {
  using L = Layout<kM, kGroups, kDeep>;
  const KRange k = k_range(a, rank);
  const int per_tile = k.end - k.begin;
  const int total = walk.count(a.num_tiles) * per_tile;
  const int ahead = min(total, L::kStages);
  const uint32_t bytes = L::kStageBytes + (kScales == Scales::kGroups ? round_up(a.m, 8) * 4 : 0);
  if (total == ahead) ptx::grid_launch();  // little to load: the next kernel may settle at once
  // Counted, for divisions would take as long as a block.
  int nth = 0;
  int tile = walk.tile(0);
  int block = k.begin;
  const auto advance = [&] {
    if (++block < k.end) return;
    block = k.begin;
    tile = walk.tile(++nth);
  };
  for (int i = 0; i < ahead; ++i) {
    const uint32_t bar = pipe.full + 8 * i;
    barrier_expect_bytes(bar, bytes);
    load_weights<kGroups, kGated>(a, pipe.stages + i * L::kStageBytes, bar, tile, block);
    advance();
  }
  ptx::grid_wait();  // x comes from the previous kernel
  for (int i = 0, at = k.begin; i < ahead; ++i) {
    load_x<kM, kScales>(a, pipe, pipe.stages + i * L::kStageBytes + L::kWBytes, i, at);
    at = at + 1 < k.end ? at + 1 : k.begin;
  }
  int s = 0;
  uint32_t phase = 0;
  for (int i = ahead; i < total; ++i) {
    const uint32_t bar = pipe.full + 8 * s;
    barrier_wait(pipe.empty + 8 * s, phase);
    barrier_expect_bytes(bar, bytes);
    load_weights<kGroups, kGated>(a, pipe.stages + s * L::kStageBytes, bar, tile, block);
    load_x<kM, kScales>(a, pipe, pipe.stages + s * L::kStageBytes + L::kWBytes, s, block);
    advance();
    if (++s == L::kStages) s = 0, phase ^= 1;
  }
  if (total > ahead) ptx::grid_launch();  // all loads are on their way
}

}  // namespace srt::cuda::skinny_fp8
