// Sums and maxima over a warp, a part of it, or a block. Fixed order: the same result every run.
#pragma once

#include <cstdint>

namespace srt::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;

struct Add {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Butterfly over groups of kWidth neighbouring lanes: every lane gets its group's result.
template <int kWidth = kWarpSize, typename T, typename Op>
__device__ __forceinline__ T warp_reduce(T x, Op op) {
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset /= 2)
    x = op(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}

template <int kWidth = kWarpSize, typename T>
__device__ __forceinline__ T warp_sum(T x) {
  return warp_reduce<kWidth>(x, Add{});
}

template <int kWidth = kWarpSize>
__device__ __forceinline__ float warp_max(float x) {
  return warp_reduce<kWidth>(x, Max{});
}

// Every thread gets the result over the block (whole warps, x dimension). `scratch` holds 32
// values; give two reductions in a row different scratch, or put a barrier between them.
template <typename T, typename Op>
__device__ __forceinline__ T block_reduce(T x, T identity, Op op, T* scratch) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int num_warps = static_cast<int>(blockDim.x) / kWarpSize;
  x = warp_reduce(x, op);
  if (num_warps == 1) return x;
  if (lane == 0) scratch[warp] = x;
  __syncthreads();  // orders the warps' partial results before everyone's read
  return warp_reduce(lane < num_warps ? scratch[lane] : identity, op);
}

}  // namespace srt::cuda
