// What a GEMM does to a value between its accumulator and its output.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace srt::cuda::gemm {

template <typename T>
__device__ __forceinline__ float to_float(T v) {
  return static_cast<float>(v);
}

template <typename T>
__device__ __forceinline__ float round_to(float v) {
  return static_cast<float>(static_cast<T>(v));
}

// silu(gate) * up, rounding where the unfused operations do.
template <typename T>
__device__ __forceinline__ float silu_mul(float gate, float up) {
  const float g = round_to<T>(gate);
  const float s = round_to<T>(g / (1.0f + __expf(-g)));
  return s * round_to<T>(up);
}

// Eight neighbouring values of 16 bits, as one access.
template <typename T>
union Eight {
  uint4 bits;
  T values[8];
};

// Writes eight values at `y`, or adds them to what stands there: each sum rounds twice, as a
// product that is stored and then added does.
template <typename T>
__device__ __forceinline__ void store_eight(T* y, const float (&v)[8], bool add) {
  Eight<T> out;
  if (add) {
    Eight<T> before;
    before.bits = *reinterpret_cast<const uint4*>(y);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      out.values[i] = static_cast<T>(to_float(before.values[i]) + round_to<T>(v[i]));
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) out.values[i] = static_cast<T>(v[i]);
  }
  *reinterpret_cast<uint4*>(y) = out.bits;
}

}  // namespace srt::cuda::gemm
