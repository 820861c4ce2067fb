// From sums in registers to y: scales and bias.
//
// The fragment of a warp is 16 rows of x by kN columns, laid out as in gemm/wgmma.cuh.
#pragma once

#include "gemm/epilogue.cuh"
#include "gemm/wide_fp8_layout.cuh"

namespace srt::cuda::wide_fp8 {

// What a warp knows about its part of a tile.
struct Fragment {
  int row;  // of x: this thread's first one; the other is 8 below
  float x_scale[2];
  uint32_t w_scales;  // shared memory, [kN]
  int tile;

  __device__ __forceinline__ bool has_row(const Args& a, int which) const {
    return row + 8 * which < a.m;
  }
};

// acc times the scales of its row and column.
template <int kN>
__device__ __forceinline__ void apply_scales(float (&acc)[kN / 2], const Fragment& f) {
  const int q = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
    const float2 w = ptx::load_shared2(f.w_scales + (8 * j + 2 * q) * 4);
    acc[4 * j] *= w.x * f.x_scale[0];
    acc[4 * j + 1] *= w.y * f.x_scale[0];
    acc[4 * j + 2] *= w.x * f.x_scale[1];
    acc[4 * j + 3] *= w.y * f.x_scale[1];
  }
}

template <int kN>
__device__ __forceinline__ void add_bias(const Args& a, float (&acc)[kN / 2], int first_col) {
  if (a.bias == nullptr) return;
  const int q = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
    const int col = first_col + 8 * j + 2 * q;
    if (col >= a.n) break;
#pragma unroll
    for (int c = 0; c < 4; ++c) acc[4 * j + c] += gemm::to_float(a.bias[col + c % 2]);
  }
}

// bf16; 16 bytes a thread.
template <int kN>
__device__ __forceinline__ void store(const Args& a, const float (&v)[kN / 2], const Fragment& f) {
  const int q = static_cast<int>(threadIdx.x) % 4;
  const int row = f.row + q / 2 * 8;
#pragma unroll
  for (int j = 0; j < kN / 8; j += 2) {
    uint32_t pairs[4];  // (row, j), (row, j + 1), (row + 8, j), (row + 8, j + 1)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = 4 * (j + i % 2) + i / 2 * 2;
      pairs[i] = gemm::pack<Out>(v[at], v[at + 1]);
    }
    const uint4 eight = gemm::transpose_quad(pairs);
    const int col = f.tile * kN + 8 * (j + q % 2);
    if (row < a.m && col < a.n) *reinterpret_cast<uint4*>(a.y + row * a.y_stride + col) = eight;
  }
}

template <int kN>
__device__ __forceinline__ void write_tile(const Args& a, float (&acc)[kN / 2], const Fragment& f) {
  apply_scales<kN>(acc, f);
  add_bias<kN>(a, acc, f.tile * kN);
  store<kN>(a, acc, f);
}

}  // namespace srt::cuda::wide_fp8
