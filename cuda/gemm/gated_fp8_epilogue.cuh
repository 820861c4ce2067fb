// From sums in registers to y: scales, silu and mul, and e4m3 with a scale for each 128 columns.
//
// The fragment of a warp is 16 rows of x by its warpgroup's columns, laid out as in gemm/wgmma.cuh.
#pragma once

#include "common/fp8_rows.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/gated_fp8_layout.cuh"

namespace srt::cuda::gated_fp8 {

// What a warp knows about its part of a tile.
struct Fragment {
  int row;  // of x: this thread's first one; the other is 8 below
  float x_scale[2];
  int nth;  // tile of this CTA
  int tile;

  __device__ __forceinline__ bool has_row(const Args& a, int which) const {
    return row + 8 * which < a.m;
  }
};

// The first half of acc becomes y, rounded to bf16; the first half is gate's, the second up's.
__device__ __forceinline__ void gate(float (&acc)[kSums], const Smem& smem, const Fragment& f) {
  constexpr int kHalf = kSums / 2;
  const int col = static_cast<int>(threadIdx.x) % 4 * 2;
  const uint32_t scales = smem.w_scales + (f.nth % 2 * kTileRows + col) * 4;
#pragma unroll
  for (int j = 0; j < kHalf / 4; ++j) {
    const float2 of_gate = ptx::load_shared2(scales + 8 * j * 4);
    const float2 of_up = ptx::load_shared2(scales + (kCols + 8 * j) * 4);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float g = acc[4 * j + c] * ((c % 2 == 0 ? of_gate.x : of_gate.y) * f.x_scale[c / 2]);
      const float u =
          acc[kHalf + 4 * j + c] * ((c % 2 == 0 ? of_up.x : of_up.y) * f.x_scale[c / 2]);
      acc[4 * j + c] = gemm::round_to<Out>(gemm::silu_mul<Out>(g, u));
    }
  }
}

// The largest magnitudes of this thread's two rows in all columns of the tile.
__device__ __forceinline__ float2 row_largest(const float (&y)[kSums]) {
  float largest[2] = {};
#pragma unroll
  for (int i = 0; i < kSums / 2; ++i) largest[i % 4 / 2] = fmaxf(largest[i % 4 / 2], fabsf(y[i]));
  return {warp_max<4>(largest[0]), warp_max<4>(largest[1])};
}

// e4m3; 16 bytes a thread. Values times `inverse` of their row.
__device__ __forceinline__ void store_fp8(const Args& a, const float (&y)[kSums], const Fragment& f,
                                          const float (&inverse)[2]) {
  constexpr int kPairs = kSums / 2 / 8;  // of fragments of 8 columns
  const int q = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int first = 0; first < kPairs; first += 4) {
      uint32_t words[4];  // two columns of a fragment, two of the next
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 8 * (first + i) + 2 * r;
        words[i] = floats_to_fp8x4<Fp8::kE4M3>(y[at] * inverse[r], y[at + 1] * inverse[r],
                                               y[at + 4] * inverse[r], y[at + 5] * inverse[r]);
      }
      const uint4 of = gemm::transpose_quad(words);  // of fragments 2 (first + q) and the next
      const uint4 bytes = {__byte_perm(of.x, of.y, 0x5410), __byte_perm(of.z, of.w, 0x5410),
                           __byte_perm(of.x, of.y, 0x7632), __byte_perm(of.z, of.w, 0x7632)};
      const int col = f.tile * kCols + 16 * (first + q);
      if (f.has_row(a, r) && col < a.num_cols)
        *reinterpret_cast<uint4*>(static_cast<uint8_t*>(a.y) + (f.row + 8 * r) * a.y_stride + col) =
            bytes;
    }
  }
}

// bf16; 16 bytes a thread.
__device__ __forceinline__ void store_wide(const Args& a, const float (&y)[kSums],
                                           const Fragment& f) {
  const int q = static_cast<int>(threadIdx.x) % 4;
  const int row = f.row + q / 2 * 8;
#pragma unroll
  for (int j = 0; j < kSums / 8; j += 2) {
    uint32_t pairs[4];  // (row, j), (row, j + 1), (row + 8, j), (row + 8, j + 1)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = 4 * (j + i % 2) + i / 2 * 2;
      pairs[i] = gemm::pack<Out>(y[at], y[at + 1]);
    }
    const uint4 eight = gemm::transpose_quad(pairs);
    const int col = f.tile * kCols + 8 * (j + q % 2);
    if (row < a.m && col < a.num_cols)
      *reinterpret_cast<uint4*>(static_cast<Out*>(a.y) + row * a.y_stride + col) = eight;
  }
}

__device__ __forceinline__ void write_tile(const Args& a, float (&acc)[kSums], const Smem& smem,
                                           const Fragment& f) {
  gate(acc, smem, f);
  if (a.y_scales == nullptr && a.y_scale == nullptr) return store_wide(a, acc, f);
  float scale[2];
  if (a.y_scales != nullptr) {
    const float2 largest = row_largest(acc);
    scale[0] = fp8_scale(largest.x, 0.0f);
    scale[1] = fp8_scale(largest.y, 0.0f);
    if (threadIdx.x % 4 == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (f.has_row(a, r)) a.y_scales[f.tile * a.y_scale_stride + f.row + 8 * r] = scale[r];
      }
    }
  } else {
    scale[0] = scale[1] = __ldg(a.y_scale);
  }
  const float inverse[2] = {1.0f / scale[0], 1.0f / scale[1]};
  store_fp8(a, acc, f, inverse);
}

}  // namespace srt::cuda::gated_fp8
