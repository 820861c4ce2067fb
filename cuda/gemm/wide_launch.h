// What the launcher of the wide GEMM and its instantiations, one a source, share.
#pragma once

#include <cuda.h>

#include "gemm/wide.h"

namespace srt::cuda::wide {

constexpr int kBlockK = 64;   // 128 bytes: one swizzle row
constexpr int kBoxRows = 64;  // rows of x per warpgroup, wgmma's M
constexpr int kMaxCluster = 8;

struct Args {
  CUtensorMap w_map;  // boxes of kN / 2 rows
  CUtensorMap x_map;  // boxes of kBoxRows rows
  const void* bias;
  void* y;
  int64_t y_stride;
  int m;
  int n;           // rows of w
  int num_items;   // tiles of w times blocks of x, the blocks of a tile side by side
  int row_blocks;  // of pair * kRows rows each
  int num_k_blocks;
  int split;
  bool add;
};

// kN weight rows by kGroups * 64 rows of x a CTA.
template <int kN, int kGroups, bool kGated>
cudaError_t run_tile(const WideGemmParams& p, const Args& args, int pair, cudaStream_t stream);

}  // namespace srt::cuda::wide
