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
  const float s = round_to<T>(__fdividef(g, 1.0f + __expf(-g)));
  return s * round_to<T>(up);
}

// Lane q of a quad holds element q of four items: afterwards it holds the four elements of item q.
__device__ __forceinline__ uint4 transpose_quad(const uint32_t (&v)[4]) {
  const bool odd = threadIdx.x & 1;
  const bool high = threadIdx.x & 2;
  const uint32_t from1 = __shfl_xor_sync(0xffffffffu, odd ? v[0] : v[1], 1);
  const uint32_t from3 = __shfl_xor_sync(0xffffffffu, odd ? v[2] : v[3], 1);
  const uint32_t lo[2] = {odd ? from1 : v[0], odd ? v[1] : from1};
  const uint32_t hi[2] = {odd ? from3 : v[2], odd ? v[3] : from3};
  const uint32_t other0 = __shfl_xor_sync(0xffffffffu, high ? lo[0] : hi[0], 2);
  const uint32_t other1 = __shfl_xor_sync(0xffffffffu, high ? lo[1] : hi[1], 2);
  return high ? make_uint4(other0, other1, hi[0], hi[1]) : make_uint4(lo[0], lo[1], other0, other1);
}

template <typename T>
__device__ __forceinline__ uint32_t pack(float lo, float hi) {
  union {
    uint32_t bits;
    T values[2];
  } out;
  out.values[0] = static_cast<T>(lo);
  out.values[1] = static_cast<T>(hi);
  return out.bits;
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
