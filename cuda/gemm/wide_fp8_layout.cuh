// What the wide fp8 GEMM keeps in shared memory, and the arguments of its kernel.
#pragma once

#include "common/hopper.cuh"
#include "common/launch.h"
#include "gemm/wide_fp8.h"

namespace srt::cuda::wide_fp8 {

using Out = __nv_bfloat16;

constexpr int kBlockK = 128;  // bytes: one swizzle row, and one group of scales
constexpr int kMaxSplit = 4;
constexpr int kBoxRows = 8;  // x comes in multiples of so many rows

constexpr int kRows = 128;          // of x: two warpgroups of 64
constexpr int kWarps = kRows / 16;  // a warp owns 16 rows of the tile
constexpr int kConsumers = kWarps * 32;
constexpr int kThreads = kConsumers + 32;

// kN: rows of w in a tile.
template <int kN>
struct Layout {
  static constexpr int kXBytes = kRows * kBlockK;
  static constexpr int kStageBytes = kXBytes + kN * kBlockK;
  static constexpr int kPart = kN / 2;            // columns of a sum in flight
  static constexpr int kWarpBytes = kN * 16 * 4;  // the sums of a warp
  static_assert(kN % 16 == 0, "whole fragments");
};

struct Args {
  CUtensorMap w_map;  // boxes of kN rows
  CUtensorMap x_map;
  const float* x_scales;
  const float* w_scales;
  const Out* bias;
  Out* y;
  int64_t y_stride;
  int64_t x_scale_stride;  // 0: x has a scale a row
  int x_scale_step;        // 0: one scale for all rows
  int m;
  int n;         // rows of w
  int box_rows;  // of x that are loaded: m, rounded up
  int num_tiles;
  int num_k_blocks;
  int split;
  int stages;
};

// Warps whose sums a split's rank finishes: [first_warp(rank), first_warp(rank + 1)).
__host__ __device__ constexpr int first_warp(int rank, int split) {
  return div_up(rank * kWarps, split);
}

// Sums that other ranks hand to this one.
template <int kN>
constexpr int exchange_bytes(int split) {
  return split == 1 ? 0 : (split - 1) * div_up(kWarps, split) * Layout<kN>::kWarpBytes;
}

// Bytes of a stage in all: x, w, scales of x in groups, and two barriers.
template <int kN>
constexpr int stage_bytes() {
  return Layout<kN>::kStageBytes + kRows * 4 + 16;
}

template <int kN>
constexpr int smem_bytes(int stages, int split) {
  return 1024 + stages * stage_bytes<kN>() + exchange_bytes<kN>(split) + 2 * kN * 4;
}

// Addresses in shared memory.
template <int kN>
struct Smem {
  using L = Layout<kN>;
  uint32_t tiles;     // 1024-byte aligned; x, then w
  uint32_t exchange;  // [source rank, but this one][warp][kN / 8][32] float4
  uint32_t w_scales;  // [2][kN], of this tile and the next
  uint32_t x_scales;  // [stages][kRows], where they are of groups
  uint32_t full;
  uint32_t empty;

  __device__ __forceinline__ Smem(uint32_t base, int stages, int split) {
    tiles = base;
    exchange = tiles + stages * L::kStageBytes;
    w_scales = exchange + exchange_bytes<kN>(split);
    x_scales = w_scales + 2 * kN * 4;
    full = x_scales + stages * kRows * 4;
    empty = full + stages * 8;
  }
  __device__ __forceinline__ uint32_t x(int stage) const { return tiles + stage * L::kStageBytes; }
  __device__ __forceinline__ uint32_t w(int stage) const { return x(stage) + L::kXBytes; }
};

// A stage of the pipeline and the parity of its barriers.
struct Cursor {
  int stage = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

struct KRange {  // the k blocks of one rank of a split
  int begin;
  int end;
};
__device__ __forceinline__ KRange k_range(const Args& a, int rank) {
  return {a.num_k_blocks * rank / a.split, a.num_k_blocks * (rank + 1) / a.split};
}

}  // namespace srt::cuda::wide_fp8
