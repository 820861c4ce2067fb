// The producer warp of the wide fp8 GEMM: weights ahead of the previous kernel's end, then x.
#pragma once

#include "gemm/wide_fp8_layout.cuh"

namespace srt::cuda::wide_fp8 {

// A place in the walk: block by block, tile by tile. Counted, for divisions would take as long as
// the block.
struct Step {
  int tile;
  int nth;  // of this CTA's tiles
  int block;

  __device__ __forceinline__ void advance(KRange k, int tile_step) {
    if (++block < k.end) return;
    block = k.begin;
    tile += tile_step;
    ++nth;
  }
};

template <int kN>
__device__ __forceinline__ void load_weights(const Args& a, const Smem<kN>& smem, int stage,
                                             const Step& step, int first_block) {
  const uint32_t bar = smem.full + 8 * stage;
  const int row = step.tile * kN;
  const uint32_t scales = min(kN, a.n - row) * 4;  // bytes, which come with a tile's first block
  const bool is_first = step.block == first_block;
  const uint32_t x_scales = a.x_scale_stride != 0 ? a.box_rows * 4 : 0;
  hopper::barrier_expect_bytes(bar,
                               (kN + a.box_rows) * kBlockK + x_scales + (is_first ? scales : 0));
  hopper::load_box(smem.w(stage), &a.w_map, bar, step.block * kBlockK, row, hopper::kEvictFirst);
  if (is_first)
    hopper::load_bytes(smem.w_scales + step.nth % 2 * kN * 4, a.w_scales + row, scales, bar);
}

template <int kN>
__device__ __forceinline__ void load_rows(const Args& a, const Smem<kN>& smem, int stage,
                                          int block) {
  const uint32_t bar = smem.full + 8 * stage;
  hopper::load_box(smem.x(stage), &a.x_map, bar, block * kBlockK, 0, hopper::kEvictLast);
  if (a.x_scale_stride == 0) return;
  hopper::load_bytes(smem.x_scales + stage * kRows * 4, a.x_scales + block * a.x_scale_stride,
                     a.box_rows * 4, bar);
}

template <int kN>
__device__ void produce(const Args& a, const Smem<kN>& smem, KRange k, int first_tile,
                        int tile_step) {
  const int my_tiles = first_tile < a.num_tiles ? div_up(a.num_tiles - first_tile, tile_step) : 0;
  const int total = my_tiles * (k.end - k.begin);
  const int ahead = min(total, a.stages);
  if (total == ahead) ptx::grid_launch();  // little to load: the next kernel may settle at once
  const Step first{first_tile, 0, k.begin};
  Step step = first;
  for (int i = 0; i < ahead; ++i) {
    load_weights(a, smem, i, step, k.begin);
    step.advance(k, tile_step);
  }
  ptx::grid_wait();  // x comes from the previous kernel
  Step behind = first;
  for (int i = 0; i < ahead; ++i) {
    load_rows(a, smem, i, behind.block);
    behind.advance(k, tile_step);
  }
  Cursor cursor;
  for (int i = ahead; i < total; ++i) {
    hopper::barrier_wait(smem.empty + 8 * cursor.stage, cursor.phase);
    load_weights(a, smem, cursor.stage, step, k.begin);
    load_rows(a, smem, cursor.stage, step.block);
    step.advance(k, tile_step);
    cursor.advance(a.stages);
  }
  if (total > ahead) ptx::grid_launch();  // all loads are on their way
}

}  // namespace srt::cuda::wide_fp8
