// The wide wgmma shapes, N = 112, 192, 224 and 256; see wgmma.cuh for operands and accumulators.
#pragma once

#include "gemm/wgmma.cuh"

namespace srt::cuda::hopper {

#define SRT_F4(d, i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define SRT_F16(d, i) SRT_F4(d, i), SRT_F4(d, (i) + 4), SRT_F4(d, (i) + 8), SRT_F4(d, (i) + 12)
#define SRT_F32(d, i) SRT_F16(d, i), SRT_F16(d, (i) + 16)

#define SRT_WGMMA_WIDE_D112                                                                    \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, " \
  "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55"
#define SRT_WGMMA_WIDE_112(T, NAME)                                                                \
  template <>                                                                                      \
  struct Wgmma<T, 112> {                                                                           \
    static __device__ __forceinline__ void run(float (&d)[56], uint64_t a, uint64_t b, int keep) { \
      asm volatile(                                                                                \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %58, 0;\n"                                             \
          "wgmma.mma_async.sync.aligned.m64n112k16.f32." NAME "." NAME " {" SRT_WGMMA_WIDE_D112    \
          "}, %56, %57, p, 1, 1, 0, 0;\n}\n"                                                       \
          : SRT_F32(d, 0), SRT_F16(d, 32), SRT_F4(d, 48), SRT_F4(d, 52)                            \
          : "l"(a), "l"(b), "r"(keep));                                                            \
    }                                                                                              \
  };
SRT_WGMMA_WIDE_112(__nv_bfloat16, "bf16")
SRT_WGMMA_WIDE_112(__half, "f16")
#undef SRT_WGMMA_WIDE_112
#undef SRT_WGMMA_WIDE_D112

#define SRT_WGMMA_WIDE_D192                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, " \
  "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, " \
  "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, " \
  "%77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, " \
  "%92, %93, %94, %95"
#define SRT_WGMMA_WIDE_192(T, NAME)                                                                \
  template <>                                                                                      \
  struct Wgmma<T, 192> {                                                                           \
    static __device__ __forceinline__ void run(float (&d)[96], uint64_t a, uint64_t b, int keep) { \
      asm volatile(                                                                                \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"                                             \
          "wgmma.mma_async.sync.aligned.m64n192k16.f32." NAME "." NAME " {" SRT_WGMMA_WIDE_D192    \
          "}, %96, %97, p, 1, 1, 0, 0;\n}\n"                                                       \
          : SRT_F32(d, 0), SRT_F32(d, 32), SRT_F32(d, 64)                                          \
          : "l"(a), "l"(b), "r"(keep));                                                            \
    }                                                                                              \
  };
SRT_WGMMA_WIDE_192(__nv_bfloat16, "bf16")
SRT_WGMMA_WIDE_192(__half, "f16")
#undef SRT_WGMMA_WIDE_192
#undef SRT_WGMMA_WIDE_D192

#define SRT_WGMMA_WIDE_D224                                                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "  \
  "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "  \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "  \
  "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "  \
  "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, "  \
  "%77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, "  \
  "%92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, " \
  "%106, %107, %108, %109, %110, %111"
#define SRT_WGMMA_WIDE_224(T, NAME)                                                             \
  template <>                                                                                   \
  struct Wgmma<T, 224> {                                                                        \
    static __device__ __forceinline__ void run(float (&d)[112], uint64_t a, uint64_t b,         \
                                               int keep) {                                      \
      asm volatile(                                                                             \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %114, 0;\n"                                         \
          "wgmma.mma_async.sync.aligned.m64n224k16.f32." NAME "." NAME " {" SRT_WGMMA_WIDE_D224 \
          "}, %112, %113, p, 1, 1, 0, 0;\n}\n"                                                  \
          : SRT_F32(d, 0), SRT_F32(d, 32), SRT_F32(d, 64), SRT_F16(d, 96)                       \
          : "l"(a), "l"(b), "r"(keep));                                                         \
    }                                                                                           \
  };
SRT_WGMMA_WIDE_224(__nv_bfloat16, "bf16")
SRT_WGMMA_WIDE_224(__half, "f16")
#undef SRT_WGMMA_WIDE_224
#undef SRT_WGMMA_WIDE_D224

#define SRT_WGMMA_WIDE_D256                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "    \
  "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "    \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "    \
  "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "    \
  "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, "    \
  "%77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, "    \
  "%92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, "   \
  "%106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, " \
  "%119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SRT_WGMMA_WIDE_256(T, NAME)                                                             \
  template <>                                                                                   \
  struct Wgmma<T, 256> {                                                                        \
    static __device__ __forceinline__ void run(float (&d)[128], uint64_t a, uint64_t b,         \
                                               int keep) {                                      \
      asm volatile(                                                                             \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"                                         \
          "wgmma.mma_async.sync.aligned.m64n256k16.f32." NAME "." NAME " {" SRT_WGMMA_WIDE_D256 \
          "}, %128, %129, p, 1, 1, 0, 0;\n}\n"                                                  \
          : SRT_F32(d, 0), SRT_F32(d, 32), SRT_F32(d, 64), SRT_F32(d, 96)                       \
          : "l"(a), "l"(b), "r"(keep));                                                         \
    }                                                                                           \
  };
SRT_WGMMA_WIDE_256(__nv_bfloat16, "bf16")
SRT_WGMMA_WIDE_256(__half, "f16")
#undef SRT_WGMMA_WIDE_256
#undef SRT_WGMMA_WIDE_D256

#undef SRT_F32
#undef SRT_F16
#undef SRT_F4

}  // namespace srt::cuda::hopper
