// float <-> fp8, saturating: e4m3 to +-448, e5m2 to +-57344; NaN stays NaN. fp8 is held as uint8.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

namespace srt::cuda {

enum class Fp8 : uint8_t { kE4M3, kE5M2 };

template <Fp8 kFormat>
constexpr float kFp8Max = kFormat == Fp8::kE4M3 ? 448.0f : 57344.0f;

template <Fp8 kFormat>
constexpr __nv_fp8_interpretation_t kFp8Kind = kFormat == Fp8::kE4M3 ? __NV_E4M3 : __NV_E5M2;

template <Fp8 kFormat>
__device__ __forceinline__ uint8_t float_to_fp8(float x) {
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, kFp8Kind<kFormat>);
}

// a in the low byte, b in the high byte.
template <Fp8 kFormat>
__device__ __forceinline__ uint16_t floats_to_fp8x2(float a, float b) {
  return __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, kFp8Kind<kFormat>);
}

template <Fp8 kFormat>
__device__ __forceinline__ uint32_t floats_to_fp8x4(float a, float b, float c, float d) {
  return static_cast<uint32_t>(floats_to_fp8x2<kFormat>(a, b)) |
         static_cast<uint32_t>(floats_to_fp8x2<kFormat>(c, d)) << 16;
}

// 8 values to 8 neighbouring bytes, 8-byte aligned.
template <Fp8 kFormat>
__device__ __forceinline__ void store_fp8_vec(uint8_t* p, const float (&x)[8]) {
  *reinterpret_cast<uint2*>(p) = {floats_to_fp8x4<kFormat>(x[0], x[1], x[2], x[3]),
                                  floats_to_fp8x4<kFormat>(x[4], x[5], x[6], x[7])};
}

// Both bytes of x as halves: every fp8 value is a half exactly.
template <Fp8 kFormat>
__device__ __forceinline__ __half2 fp8x2_to_half2(uint16_t x) {
  return __half2(__nv_cvt_fp8x2_to_halfraw2(x, kFp8Kind<kFormat>));
}

template <Fp8 kFormat>
__device__ __forceinline__ float fp8_to_float(uint8_t x) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(x, kFp8Kind<kFormat>)));
}

}  // namespace srt::cuda
