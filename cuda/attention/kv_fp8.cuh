// fp8 keys and values as bf16 or fp16, exactly and without going through float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "attention/params.h"

namespace srt::cuda {

// The fp8 bits land in the wide type's exponent and mantissa fields; one multiplication by a power
// of two then corrects the exponent bias, subnormals included. e4m3's NaN reads as 480, e5m2's
// infinity as 65536: what store_kv writes saturates, so neither stands in a pool.
template <typename T, KvDtype kKv>
struct Fp8Widening {
  static constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
  static constexpr int kShift = (kKv == KvDtype::kE4M3 ? 4 : 3) - (kBf16 ? 0 : 3);
  // 2^(bias of T - bias of the fp8 type), as the bits of a T.
  static constexpr uint32_t kFactor = kBf16 ? (kKv == KvDtype::kE4M3 ? 0x7B80u : 0x7780u)
                                            : (kKv == KvDtype::kE4M3 ? 0x5C00u : 0x3C00u);

  // `bytes` holds two fp8 values in bytes 1 and 3.
  static __device__ __forceinline__ uint32_t widen_pair(uint32_t bytes) {
    const uint32_t bits = ((bytes & 0x7F007F00u) >> kShift) | (bytes & 0x80008000u);
    constexpr uint32_t kFactors = kFactor | kFactor << 16;
    uint32_t out;
    if constexpr (kBf16) {
      // -0.0 as the addend keeps the sign of zero; sm_80 has the fused form only.
      asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(bits), "r"(kFactors), "r"(0x80008000u));
    } else {
      asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(bits), "r"(kFactors));
    }
    return out;
  }
};

// Eight fp8 values to eight T.
template <typename T, KvDtype kKv>
__device__ __forceinline__ uint4 widen_fp8x8(uint2 x) {
  using W = Fp8Widening<T, kKv>;
  uint4 y;
  y.x = W::widen_pair(__byte_perm(x.x, 0, 0x1404));
  y.y = W::widen_pair(__byte_perm(x.x, 0, 0x3424));
  y.z = W::widen_pair(__byte_perm(x.y, 0, 0x1404));
  y.w = W::widen_pair(__byte_perm(x.y, 0, 0x3424));
  return y;
}

template <typename T>
__device__ __forceinline__ uint4 widen_fp8x8(uint2 x, KvDtype kv) {
  return kv == KvDtype::kE4M3 ? widen_fp8x8<T, KvDtype::kE4M3>(x)
                              : widen_fp8x8<T, KvDtype::kE5M2>(x);
}

}  // namespace srt::cuda
