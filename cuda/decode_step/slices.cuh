// A warp's share of the rows of x: read while other CTAs still write it, and normed.
#pragma once

#include "common/mma.cuh"
#include "decode_step/sync.cuh"

namespace srt::cuda::decode_step {

using Slice = uint4[kSteps];  // a lane's 8 values of each of its warp's steps, in bf16

// The compiler knows nothing of x: what is computed from it stays where it is used, instead of in
// registers throughout the kernel.
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

struct Lane {
  int thread = opaque(static_cast<int>(threadIdx.x));
  int warp = thread / 32;
  int row = thread % 32 / 4;  // of x, and of a tile of w
  int quad = thread % 4;

  // Where in a chunk the lane's values of step i begin; the step exists where they are below the
  // chunk's columns.
  __device__ __forceinline__ int column(int i) const {
    return (warp + i * kWarps) * kStep + quad * 8;
  }
};

// A chunk of one row, repeated in all lanes of a column (a norm's weight), or of the lane's row.
__device__ __forceinline__ void load_weight_slice(Slice& out, const bf16* w, int columns,
                                                  const Lane& lane) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int at = lane.column(i);
    out[i] = at < columns ? __ldg(reinterpret_cast<const uint4*>(w + at)) : uint4{};
  }
}

// The columns that the lane's row of x has.
__device__ __forceinline__ int row_limit(int num_rows, int columns, const Lane& lane) {
  return opaque(lane.row < num_rows ? columns : 0);
}

// As much of it as has been written; see await_slice.
__device__ __forceinline__ void load_slice(Slice& out, const bf16* x, int stride, int num_rows,
                                           int columns, const Lane& lane) {
  const int limit = row_limit(num_rows, columns, lane);
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int at = lane.column(i);
    const bool valid = at < limit;
    out[i] = valid ? load_fresh(x + lane.row * stride + at) : uint4{};
  }
}

// Reads again until all of a slice has been written.
__device__ __forceinline__ void await_slice(Slice& out, const bf16* x, int stride, int num_rows,
                                            int columns, const Lane& lane) {
  const int limit = row_limit(num_rows, columns, lane);
  Patience patience;
  while (true) {
    bool written = true;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int at = lane.column(i);
      if (at >= limit || is_written(out[i])) continue;
      out[i] = load_fresh(x + lane.row * stride + at);
      written = false;
    }
    if (__all_sync(0xffffffffu, written)) return;
    patience.lose();
  }
}

__device__ __forceinline__ uint32_t product_of_pairs(uint32_t x, uint32_t y) {
  const __nv_bfloat162 z = __hmul2(reinterpret_cast<const __nv_bfloat162&>(x),
                                   reinterpret_cast<const __nv_bfloat162&>(y));
  return reinterpret_cast<const uint32_t&>(z);
}

// x <- x * w, rounded; the rows' scale follows the product. Adds x x^T to `squares`, whose diagonal
// is what the rows' scales need: as an operand, a row of x lies in the same lanes on both sides.
__device__ __forceinline__ void weigh(Slice& x, const Slice& w, float (&squares)[4]) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const uint32_t lo[4] = {x[i].x, 0, x[i].y, 0};
    const uint32_t hi[4] = {x[i].z, 0, x[i].w, 0};
    ptx::mma_m16n8k16<bf16>(squares, lo, x[i].x, x[i].y);
    ptx::mma_m16n8k16<bf16>(squares, hi, x[i].z, x[i].w);
    x[i].x = product_of_pairs(x[i].x, w[i].x);
    x[i].y = product_of_pairs(x[i].y, w[i].y);
    x[i].z = product_of_pairs(x[i].z, w[i].z);
    x[i].w = product_of_pairs(x[i].w, w[i].w);
  }
}

}  // namespace srt::cuda::decode_step
