// What the skinny fp8 GEMM keeps in shared memory, its arguments, and the walk of a CTA.
#pragma once

#include "common/fp8_rows.h"
#include "common/hopper.cuh"
#include "common/launch.h"
#include "gemm/skinny_fp8.h"

namespace srt::cuda::skinny_fp8 {

using namespace hopper;
using Out = __nv_bfloat16;

constexpr int kBlockK = 128;    // bytes: one swizzle row
constexpr int kGroupRows = 64;  // rows of w per warpgroup, wgmma's M
constexpr int kMaxSplit = 8;
constexpr int kMaxShallowRows = 32;  // up to so many rows of x both depths are built

// How x and w are scaled.
enum class Scales : uint8_t {
  kRows,    // both have one scale a row
  kGroups,  // x has one for each 128 of k
  kBlocks,  // both have
};

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
  static_assert(kM * kPartialStride * 4 <= kStages * kStageBytes, "partials reuse the pipeline");
  static constexpr int kHeldBytes = kGroups == 2 ? kM * kGroupRows * 2 : 0;  // gated, half a group
  static constexpr int kStageExtra = kM * 4 + 2 * 8;  // scales of x in groups, barriers
  static constexpr size_t kSmemBytes = 1024 + static_cast<size_t>(kStages) * kStageBytes +
                                       kStagingBytes + kHeldBytes + kStages * kStageExtra + kM * 4;
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
  float* y_scales;
  int64_t y_stride;
  int64_t x_scale_stride;
  int64_t y_scale_stride;
  int x_scale_step;  // 0: one scale for all rows
  int m;
  int n;  // rows of w
  int num_tiles;
  int num_k_blocks;
  int split;
  bool paired;  // a CTA walks tiles 2 i and 2 i + 1 together: they share scales of y
};

// The tiles of a CTA, in order.
struct Walk {
  int first;
  int step;
  bool paired;

  __device__ __forceinline__ int tile(int nth) const {
    return paired ? 2 * (first + nth / 2 * step) + nth % 2 : first + nth * step;
  }
  __device__ __forceinline__ int count(int num_tiles) const {
    const int each = paired ? 2 : 1;
    const int num = num_tiles / each;
    return first < num ? div_up(num - first, step) * each : 0;
  }
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

// The pipeline of a CTA in shared memory.
struct Pipe {
  uint32_t stages;
  uint32_t full;
  uint32_t empty;
  uint32_t x_scales;  // [stages][kM], where x has scales of groups
};

}  // namespace srt::cuda::skinny_fp8
