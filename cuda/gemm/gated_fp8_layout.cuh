// What the gated fp8 GEMM keeps in shared memory, and the arguments of its kernel.
#pragma once

#include "common/fp8_rows.h"
#include "common/hopper.cuh"
#include "common/launch.h"
#include "gemm/gated_fp8.h"

namespace srt::cuda::gated_fp8 {

using Out = __nv_bfloat16;

constexpr int kBlockK = 128;          // bytes: one swizzle row
constexpr int kRows = 128;            // of x: two warpgroups of 64
constexpr int kCols = kFp8Group;      // of y in a tile
constexpr int kTileRows = 2 * kCols;  // of w: gate's, then the rows of up that match
constexpr int kPart = 64;             // weight rows of one sum in flight
constexpr int kParts = kTileRows / kPart;
constexpr int kSums = kTileRows / 2;  // of a thread
constexpr int kConsumers = 2 * 128;   // threads
constexpr int kThreads = 3 * 128;     // a whole warpgroup produces, and gives its registers away
constexpr int kConsumerRegisters = 240;
constexpr int kProducerRegisters = 24;

constexpr int kXBytes = kRows * kBlockK;
constexpr int kWBytes = kTileRows * kBlockK;

struct Args {
  CUtensorMap w_map;  // boxes of kCols rows
  CUtensorMap x_map;
  const float* x_scales;
  const float* w_scales;
  void* y;
  const float* y_scale;
  float* y_scales;
  int64_t y_scale_stride;
  int64_t y_stride;
  int x_scale_step;  // 0: one scale for all rows
  int m;
  int num_cols;  // of y
  int box_rows;  // of x that are loaded: m, rounded up
  int num_tiles;
  int num_k_blocks;
  int stages;
  int x_stages;
};

constexpr int smem_bytes(int stages, int x_stages) {
  return 1024 + stages * (kWBytes + 16) + x_stages * kXBytes + 2 * kTileRows * 4;
}

// Addresses in shared memory. Block b of the walk has stage b % stages, which its barriers and its
// weights share, and stage b % x_stages of x.
struct Smem {
  uint32_t w_tiles;  // 1024-byte aligned
  uint32_t x_tiles;
  uint32_t w_scales;  // [2][kTileRows], of this tile and the next
  uint32_t full;
  uint32_t empty;

  __device__ __forceinline__ Smem(uint32_t base, int stages, int x_stages) {
    w_tiles = base;
    x_tiles = w_tiles + stages * kWBytes;
    w_scales = x_tiles + x_stages * kXBytes;
    full = w_scales + 2 * kTileRows * 4;
    empty = full + stages * 8;
  }
  __device__ __forceinline__ uint32_t w(int stage) const { return w_tiles + stage * kWBytes; }
  __device__ __forceinline__ uint32_t x(int stage) const { return x_tiles + stage * kXBytes; }
};

// A block's stages and the parity of its barriers.
struct Cursor {
  int stage = 0;
  int x_stage = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ void advance(const Args& a) {
    if (++x_stage == a.x_stages) x_stage = 0;
    if (++stage == a.stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace srt::cuda::gated_fp8
