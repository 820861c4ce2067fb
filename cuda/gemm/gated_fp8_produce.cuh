// The producer warp of the gated fp8 GEMM: weights ahead of the previous kernel's end, then x.
#pragma once

#include "common/ptx.cuh"
#include "gemm/gated_fp8_layout.cuh"

namespace srt::cuda::gated_fp8 {

// A place in the walk: block by block, tile by tile. Counted, for divisions would take as long as
// the block.
struct Step {
  int tile;
  int nth = 0;  // of this CTA's tiles
  int block = 0;

  __device__ __forceinline__ void advance(const Args& a) {
    if (++block < a.num_k_blocks) return;
    block = 0;
    tile += static_cast<int>(gridDim.x);
    ++nth;
  }
};

// The weights of a block; its barrier is told what x will bring, too.
__device__ __forceinline__ void load_weights(const Args& a, const Smem& smem, int stage,
                                             const Step& step) {
  const uint32_t bar = smem.full + 8 * stage;
  const uint32_t to = smem.w(stage);
  const int row = step.tile * kCols;
  const uint32_t scales = min(kCols, a.num_cols - row) * 4;  // bytes of gate's, and of up's
  const bool is_first = step.block == 0;                     // they come with a tile's first block
  hopper::barrier_expect_bytes(bar,
                               (kTileRows + a.box_rows) * kBlockK + (is_first ? 2 * scales : 0));
  hopper::load_box(to, &a.w_map, bar, step.block * kBlockK, row, hopper::kEvictFirst);
  hopper::load_box(to + kCols * kBlockK, &a.w_map, bar, step.block * kBlockK, a.num_cols + row,
                   hopper::kEvictFirst);
  if (!is_first) return;
  const uint32_t scales_to = smem.w_scales + step.nth % 2 * kTileRows * 4;
  hopper::load_bytes(scales_to, a.w_scales + row, scales, bar);
  hopper::load_bytes(scales_to + kCols * 4, a.w_scales + a.num_cols + row, scales, bar);
}

__device__ __forceinline__ void load_rows(const Args& a, const Smem& smem, const Cursor& cursor,
                                          int block) {
  hopper::load_box(smem.x(cursor.x_stage), &a.x_map, smem.full + 8 * cursor.stage, block * kBlockK,
                   0, hopper::kEvictLast);
}

// Blocks are released in order, and each makes room for weights `stages` blocks on and for rows of
// x `x_stages` blocks on, whose weights are under way already.
__device__ void produce(const Args& a, const Smem& smem) {
  const int first_tile = static_cast<int>(blockIdx.x);
  const int my_tiles = div_up(a.num_tiles - first_tile, static_cast<int>(gridDim.x));
  const int total = my_tiles * a.num_k_blocks;
  const int ahead = min(total, a.stages);
  const int x_ahead = min(total, a.x_stages);
  if (total == ahead) ptx::grid_launch();  // little to load: the next kernel may settle at once
  Step w_step{first_tile};
  for (int i = 0; i < ahead; ++i) {
    load_weights(a, smem, i, w_step);
    w_step.advance(a);
  }
  ptx::grid_wait();  // x comes from the previous kernel
  Step x_step{first_tile};
  Cursor x_cursor;
  for (int i = 0; i < x_ahead; ++i) {
    load_rows(a, smem, x_cursor, x_step.block);
    x_step.advance(a);
    x_cursor.advance(a);
  }
  Cursor cursor;
  for (int i = x_ahead; i < total; ++i) {
    hopper::barrier_wait(smem.empty + 8 * cursor.stage, cursor.phase);
    load_rows(a, smem, x_cursor, x_step.block);
    x_step.advance(a);
    x_cursor.advance(a);
    if (w_step.tile < a.num_tiles) {
      load_weights(a, smem, cursor.stage, w_step);
      w_step.advance(a);
      if (w_step.tile >= a.num_tiles) ptx::grid_launch();  // all weights are on their way
    }
    cursor.advance(a);
  }
}

}  // namespace srt::cuda::gated_fp8
