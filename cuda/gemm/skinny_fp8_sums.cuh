// The products of the skinny fp8 GEMM, and how the sums of 128 values of k become float32 sums.
#pragma once

#include "gemm/skinny_fp8_layout.cuh"
#include "gemm/wgmma_fp8.cuh"

namespace srt::cuda::skinny_fp8 {

// One wgmma's share of a block's sums, joined to acc, times the scales that change along k: of x's
// rows, which are this thread's columns, and with kBlocks of its two rows of w.
template <int kM, Scales kScales>
struct Joiner {
  const Args& a;
  uint32_t x_scales;      // kGroups: shared memory
  const float* w_scales;  // kBlocks: of this thread's first row; the second is 8 rows on
  bool has_rows[2];

  // The scales of x's rows `col` and col + 1.
  __device__ __forceinline__ float2 x_scale(int col, int block, int stage) const {
    if constexpr (kScales == Scales::kGroups) {
      float2 v;
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(v.x), "=f"(v.y)
                   : "r"(x_scales + (stage * kM + col) * 4));
      return v;
    }
    const float* const at = a.x_scales + block * a.x_scale_stride;  // columns past m: any scale
    return {__ldcg(at + min(col, a.m - 1)), __ldcg(at + min(col + 1, a.m - 1))};
  }

  template <int kPart>
  __device__ __forceinline__ void join(float (&acc)[kM / 2], const float (&part)[kPart / 2],
                                       int half, int block, int stage) const {
    float row_scale[2] = {1.0f, 1.0f};
    if constexpr (kScales == Scales::kBlocks) {
#pragma unroll
      for (int r = 0; r < 2; ++r)
        row_scale[r] = has_rows[r] ? __ldg(w_scales + r * 8 * a.num_k_blocks + block) : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kPart / 8; ++j) {
      const int at = half * (kPart / 2) + 4 * j;
      if constexpr (kScales == Scales::kRows) {
#pragma unroll
        for (int c = 0; c < 4; ++c) acc[at + c] += part[4 * j + c];
      } else {
        const int col = half * kPart + 8 * j + static_cast<int>(threadIdx.x) % 4 * 2;
        const float2 x = x_scale(col, block, stage);
#pragma unroll
        for (int c = 0; c < 4; ++c)
          acc[at + c] += part[4 * j + c] * (row_scale[c / 2] * (c % 2 == 0 ? x.x : x.y));
      }
    }
  }
};

// Starts the products of one block: rows [half * kPart, …) of x.
template <int kPart>
__device__ __forceinline__ void multiply(float (&part)[kPart / 2], uint64_t w, uint64_t x) {
  fence_registers(part);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kBlockK / 32; ++k) WgmmaE4m3<kPart>::run(part, w + 2 * k, x + 2 * k, k > 0);
  wgmma_commit();
  fence_registers(part);
}

// Sums kept in float32: while a block's products run, those of the one before are joined.
template <int kM, int kGroups, bool kDeep, Scales kScales>
__device__ __forceinline__ void accumulate_blocks(float (&acc)[kM / 2], const Pipe& pipe, int group,
                                                  KRange range, int& cursor,
                                                  const Joiner<kM, kScales>& joiner) {
  using L = Layout<kM, kGroups, kDeep>;
  constexpr int kPart = L::kPart;
  constexpr int kHalves = kM / kPart;
  const bool leader = threadIdx.x % 32 == 0;  // a warp releases a stage for itself
#pragma unroll
  for (int i = 0; i < kM / 2; ++i) acc[i] = 0.0f;
  float even[kPart / 2];
  const int units = (range.end - range.begin) * kHalves;  // a unit is a wgmma's share of a block
  const int first = cursor;
  const auto start = [&](int u, float (&part)[kPart / 2]) {
    const int half = u % kHalves;
    const int s = (first + u / kHalves) % L::kStages;
    if (half == 0) barrier_wait(pipe.full + 8 * s, ((first + u / kHalves) / L::kStages) & 1);
    const uint32_t stage = pipe.stages + s * L::kStageBytes;
    multiply<kPart>(part, k_major_descriptor(stage + group * kGroupRows * kBlockK),
                    k_major_descriptor(stage + L::kWBytes + half * kPart * kBlockK));
  };
  const auto finish = [&](int u, float (&part)[kPart / 2], int half) {
    fence_registers(part);
    const int s = (first + u / kHalves) % L::kStages;
    const bool releases = half == kHalves - 1;
    if (kScales != Scales::kGroups && leader && releases) barrier_arrive(pipe.empty + 8 * s);
    joiner.template join<kPart>(acc, part, half, range.begin + u / kHalves, s);
    // Each lane has read scales of the stage, and says so for itself.
    if (kScales == Scales::kGroups && releases) barrier_arrive(pipe.empty + 8 * s);
  };
  cursor += range.end - range.begin;
  if constexpr (!(kGroups < 4 &&
                  (kM < 64 || kScales != Scales::kBlocks))) {  // no registers for two shares
    for (int u = 0; u < units; u += kHalves) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        start(u + half, even);
        wgmma_wait<0>();
        finish(u + half, even, half);
      }
    }
    return;
  }
  float odd[kPart / 2];
  start(0, even);
  int u = 1;  // the unit before it is under way, in `even`
  for (; u + 1 < units; u += 2) {
    start(u, odd);
    wgmma_wait<1>();
    finish(u - 1, even, 0);
    start(u + 1, even);
    wgmma_wait<1>();
    finish(u, odd, kHalves - 1);
  }
  if (u < units) {
    start(u, odd);
    wgmma_wait<1>();
    finish(u - 1, even, 0);
    wgmma_wait<0>();
    finish(u, odd, kHalves - 1);
  } else {
    wgmma_wait<0>();
    finish(u - 1, even, 0);
  }
}

// The first row of the tile that this thread's fragment holds; the other is 8 rows on.
__device__ __forceinline__ int fragment_row() {
  const int t = static_cast<int>(threadIdx.x) % 128;
  return static_cast<int>(threadIdx.x) / 128 * kGroupRows + t / 32 * 16 + t % 32 / 4;
}

template <int kM, int kGroups, bool kGated, bool kDeep, Scales kScales>
__device__ __forceinline__ void accumulate(const Args& a, float (&acc)[kM / 2], const Pipe& pipe,
                                           int tile, KRange range, int& cursor) {
  const int group = static_cast<int>(threadIdx.x) / 128;
  const int row = weight_row<kGroups, kGated>(a, tile, fragment_row());
  const Joiner<kM, kScales> joiner{a,
                                   pipe.x_scales,
                                   a.w_scales + static_cast<int64_t>(row) * a.num_k_blocks,
                                   {row < a.n, row + 8 < a.n}};
  accumulate_blocks<kM, kGroups, kDeep, kScales>(acc, pipe, group, range, cursor, joiner);
}

}  // namespace srt::cuda::skinny_fp8
