// wgmma: a warpgroup's 64 x N x 16 products with B in shared memory (sm_90a).
//
// One struct per N, with the accumulators of one thread as float[N / 2] in softmax.cuh's layout.
// `ss` takes A from shared memory, `rs` from registers, which must stay untouched until the group
// is waited for, as the accumulators must.
#pragma once

#include "common/hopper.cuh"

namespace srt::cuda::hopper {

// A shared-memory operand of 128-byte rows under the 128-byte swizzle, at a 1024-byte aligned base.
// K-major: stride is the distance of 8-row groups. MN-major: stride is the distance of groups of 8
// along K, leading that of blocks of 64 along M or N.
__device__ __forceinline__ uint64_t wgmma_operand(uint32_t smem, int leading_bytes,
                                                  int stride_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | static_cast<uint64_t>(stride_bytes >> 4) << 32 |
         static_cast<uint64_t>(leading_bytes >> 4) << 16 | ((smem & 0x3FFFFu) >> 4);
}

#define SRT_F4(d, i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define SRT_F16(d, i) SRT_F4(d, i), SRT_F4(d, (i) + 4), SRT_F4(d, (i) + 8), SRT_F4(d, (i) + 12)
#define SRT_F32(d, i) SRT_F16(d, i), SRT_F16(d, (i) + 16)

// kTransB: B's rows run along N (MN-major), as values do in their tile.
template <typename T, int kN, bool kTransB>
struct AttentionWgmma;

#define SRT_WGMMA_D64                                                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SRT_WGMMA_SS64(TYPE)                                                         \
  asm volatile(                                                                      \
      "{.reg .pred p; setp.ne.b32 p, %34, 0; "                                       \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" SRT_WGMMA_D64 \
      "}, %32, %33, p, 1, 1, 0, %35;}"                                               \
      : SRT_F32(d, 0)                                                                \
      : "l"(a), "l"(b), "r"(accumulate), "n"(kTransB))
#define SRT_WGMMA_RS64(TYPE)                                                         \
  asm volatile(                                                                      \
      "{.reg .pred p; setp.ne.b32 p, %37, 0; "                                       \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" SRT_WGMMA_D64 \
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;}"                                 \
      : SRT_F32(d, 0)                                                                \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransB))

template <typename T, bool kTransB>
struct AttentionWgmma<T, 64, kTransB> {
  static __device__ __forceinline__ void ss(float (&d)[32], uint64_t a, uint64_t b,
                                            int accumulate) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      SRT_WGMMA_SS64("bf16");
    else
      SRT_WGMMA_SS64("f16");
  }
  static __device__ __forceinline__ void rs(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                            int accumulate) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      SRT_WGMMA_RS64("bf16");
    else
      SRT_WGMMA_RS64("f16");
  }
};

#undef SRT_WGMMA_D64
#undef SRT_WGMMA_SS64
#undef SRT_WGMMA_RS64

#define SRT_WGMMA_D80                                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39"
#define SRT_WGMMA_SS80(TYPE)                                                         \
  asm volatile(                                                                      \
      "{.reg .pred p; setp.ne.b32 p, %42, 0; "                                       \
      "wgmma.mma_async.sync.aligned.m64n80k16.f32." TYPE "." TYPE " {" SRT_WGMMA_D80 \
      "}, %40, %41, p, 1, 1, 0, %43;}"                                               \
      : SRT_F32(d, 0), SRT_F4(d, 32), SRT_F4(d, 36)                                  \
      : "l"(a), "l"(b), "r"(accumulate), "n"(kTransB))
#define SRT_WGMMA_RS80(TYPE)                                                         \
  asm volatile(                                                                      \
      "{.reg .pred p; setp.ne.b32 p, %45, 0; "                                       \
      "wgmma.mma_async.sync.aligned.m64n80k16.f32." TYPE "." TYPE " {" SRT_WGMMA_D80 \
      "}, {%40, %41, %42, %43}, %44, p, 1, 1, %46;}"                                 \
      : SRT_F32(d, 0), SRT_F4(d, 32), SRT_F4(d, 36)                                  \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransB))

template <typename T, bool kTransB>
struct AttentionWgmma<T, 80, kTransB> {
  static __device__ __forceinline__ void ss(float (&d)[40], uint64_t a, uint64_t b,
                                            int accumulate) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      SRT_WGMMA_SS80("bf16");
    else
      SRT_WGMMA_SS80("f16");
  }
  static __device__ __forceinline__ void rs(float (&d)[40], const uint32_t (&a)[4], uint64_t b,
                                            int accumulate) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      SRT_WGMMA_RS80("bf16");
    else
      SRT_WGMMA_RS80("f16");
  }
};

#undef SRT_WGMMA_D80
#undef SRT_WGMMA_SS80
#undef SRT_WGMMA_RS80

#define SRT_WGMMA_D96                                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define SRT_WGMMA_SS96(TYPE)                                                         \
  asm volatile(                                                                      \
      "{.reg .pred p; setp.ne.b32 p, %50, 0; "                                       \
      "wgmma.mma_async.sync.aligned.m64n96k16.f32." TYPE "." TYPE " {" SRT_WGMMA_D96 \
      "}, %48, %49, p, 1, 1, 0, %51;}"                                               \
      : SRT_F32(d, 0), SRT_F16(d, 32)                                                \
      : "l"(a), "l"(b), "r"(accumulate), "n"(kTransB))
#define SRT_WGMMA_RS96(TYPE)                                                         \
  asm volatile(                                                                      \
      "{.reg .pred p; setp.ne.b32 p, %53, 0; "                                       \
      "wgmma.mma_async.sync.aligned.m64n96k16.f32." TYPE "." TYPE " {" SRT_WGMMA_D96 \
      "}, {%48, %49, %50, %51}, %52, p, 1, 1, %54;}"                                 \
      : SRT_F32(d, 0), SRT_F16(d, 32)                                                \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransB))

template <typename T, bool kTransB>
struct AttentionWgmma<T, 96, kTransB> {
  static __device__ __forceinline__ void ss(float (&d)[48], uint64_t a, uint64_t b,
                                            int accumulate) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      SRT_WGMMA_SS96("bf16");
    else
      SRT_WGMMA_SS96("f16");
  }
  static __device__ __forceinline__ void rs(float (&d)[48], const uint32_t (&a)[4], uint64_t b,
                                            int accumulate) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      SRT_WGMMA_RS96("bf16");
    else
      SRT_WGMMA_RS96("f16");
  }
};

#undef SRT_WGMMA_D96
#undef SRT_WGMMA_SS96
#undef SRT_WGMMA_RS96

#define SRT_WGMMA_D128                                                               \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SRT_WGMMA_SS128(TYPE)                                                          \
  asm volatile(                                                                        \
      "{.reg .pred p; setp.ne.b32 p, %66, 0; "                                         \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" SRT_WGMMA_D128 \
      "}, %64, %65, p, 1, 1, 0, %67;}"                                                 \
      : SRT_F32(d, 0), SRT_F32(d, 32)                                                  \
      : "l"(a), "l"(b), "r"(accumulate), "n"(kTransB))
#define SRT_WGMMA_RS128(TYPE)                                                          \
  asm volatile(                                                                        \
      "{.reg .pred p; setp.ne.b32 p, %69, 0; "                                         \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" SRT_WGMMA_D128 \
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;}"                                   \
      : SRT_F32(d, 0), SRT_F32(d, 32)                                                  \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransB))

template <typename T, bool kTransB>
struct AttentionWgmma<T, 128, kTransB> {
  static __device__ __forceinline__ void ss(float (&d)[64], uint64_t a, uint64_t b,
                                            int accumulate) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      SRT_WGMMA_SS128("bf16");
    else
      SRT_WGMMA_SS128("f16");
  }
  static __device__ __forceinline__ void rs(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                            int accumulate) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      SRT_WGMMA_RS128("bf16");
    else
      SRT_WGMMA_RS128("f16");
  }
};

#undef SRT_WGMMA_D128
#undef SRT_WGMMA_SS128
#undef SRT_WGMMA_RS128

#define SRT_WGMMA_D256                                                                           \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "             \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SRT_WGMMA_SS256(TYPE)                                                          \
  asm volatile(                                                                        \
      "{.reg .pred p; setp.ne.b32 p, %130, 0; "                                        \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " {" SRT_WGMMA_D256 \
      "}, %128, %129, p, 1, 1, 0, %131;}"                                              \
      : SRT_F32(d, 0), SRT_F32(d, 32), SRT_F32(d, 64), SRT_F32(d, 96)                  \
      : "l"(a), "l"(b), "r"(accumulate), "n"(kTransB))
#define SRT_WGMMA_RS256(TYPE)                                                          \
  asm volatile(                                                                        \
      "{.reg .pred p; setp.ne.b32 p, %133, 0; "                                        \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " {" SRT_WGMMA_D256 \
      "}, {%128, %129, %130, %131}, %132, p, 1, 1, %134;}"                             \
      : SRT_F32(d, 0), SRT_F32(d, 32), SRT_F32(d, 64), SRT_F32(d, 96)                  \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransB))

template <typename T, bool kTransB>
struct AttentionWgmma<T, 256, kTransB> {
  static __device__ __forceinline__ void ss(float (&d)[128], uint64_t a, uint64_t b,
                                            int accumulate) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      SRT_WGMMA_SS256("bf16");
    else
      SRT_WGMMA_SS256("f16");
  }
  static __device__ __forceinline__ void rs(float (&d)[128], const uint32_t (&a)[4], uint64_t b,
                                            int accumulate) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      SRT_WGMMA_RS256("bf16");
    else
      SRT_WGMMA_RS256("f16");
  }
};

#undef SRT_WGMMA_D256
#undef SRT_WGMMA_SS256
#undef SRT_WGMMA_RS256

#undef SRT_F4
#undef SRT_F16
#undef SRT_F32

}  // namespace srt::cuda::hopper
