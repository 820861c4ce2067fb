// Wide loads and stores, and conversion between storage types and float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace srt::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// Round to nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// What x becomes when it is stored as T.
template <typename T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

// kCount neighbours in memory; up to 16 bytes move in one access, more in 16-byte pieces.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Vec {
  T v[kCount];

  __device__ __forceinline__ T& operator[](int i) { return v[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return v[i]; }
};

template <int kCount, typename T>
__device__ __forceinline__ Vec<T, kCount> load_vec(const T* p) {
  return *reinterpret_cast<const Vec<T, kCount>*>(p);
}

template <typename T, int kCount>
__device__ __forceinline__ void store_vec(T* p, const Vec<T, kCount>& x) {
  *reinterpret_cast<Vec<T, kCount>*>(p) = x;
}

// 16 bytes that are read once: past L1.
__device__ __forceinline__ uint4 load_stream(const void* p) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(p));
  return x;
}

template <int kCount, typename T>
__device__ __forceinline__ Vec<T, kCount> load_vec_stream(const T* p) {
  static_assert(sizeof(T) * kCount % 16 == 0, "streams move in pieces of 16 bytes");
  Vec<T, kCount> x;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(T) * kCount / 16); ++i)
    reinterpret_cast<uint4*>(&x)[i] = load_stream(reinterpret_cast<const uint4*>(p) + i);
  return x;
}

template <int kCount, typename T>
__device__ __forceinline__ void load_floats(const T* p, float (&out)[kCount]) {
  const Vec<T, kCount> x = load_vec<kCount>(p);
#pragma unroll
  for (int i = 0; i < kCount; ++i) out[i] = to_float(x[i]);
}

template <int kCount, typename T>
__device__ __forceinline__ void store_floats(T* p, const float (&x)[kCount]) {
  Vec<T, kCount> y;
#pragma unroll
  for (int i = 0; i < kCount; ++i) y[i] = from_float<T>(x[i]);
  store_vec(p, y);
}

}  // namespace srt::cuda
