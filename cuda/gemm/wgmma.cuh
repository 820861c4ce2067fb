// acc[64 x N] += A[64 x 16] B[N x 16]^T for one warpgroup, both operands in shared memory, K-major.
//
// acc follows the wgmma fragment layout: thread t of the warpgroup holds rows 16 (t / 32) + (t %
// 32) / 4 and 8 below it, columns 8 j + 2 (t % 4) and the next: acc[4 j + 0..3] = (row, col), (row,
// col + 1), (row + 8, col), (row + 8, col + 1).
#pragma once

#include "common/hopper.cuh"

namespace srt::cuda::hopper {

template <typename T, int kN>
struct Wgmma;

#define SRT_WGMMA_ACC4(d, i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])

#define SRT_WGMMA_8(T, NAME)                                                                      \
  template <>                                                                                     \
  struct Wgmma<T, 8> {                                                                            \
    static __device__ __forceinline__ void run(float (&d)[4], uint64_t a, uint64_t b, int keep) { \
      asm volatile(                                                                               \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"                                             \
          "wgmma.mma_async.sync.aligned.m64n8k16.f32." NAME "." NAME                              \
          " {"                                                                                    \
          "%0, %1, %2, %3"                                                                        \
          "}, %4, %5, p, 1, 1, 0, 0;\n}\n"                                                        \
          : SRT_WGMMA_ACC4(d, 0)                                                                  \
          : "l"(a), "l"(b), "r"(keep));                                                           \
    }                                                                                             \
  };
SRT_WGMMA_8(__nv_bfloat16, "bf16")
SRT_WGMMA_8(__half, "f16")
#undef SRT_WGMMA_8

#define SRT_WGMMA_16(T, NAME)                                                                     \
  template <>                                                                                     \
  struct Wgmma<T, 16> {                                                                           \
    static __device__ __forceinline__ void run(float (&d)[8], uint64_t a, uint64_t b, int keep) { \
      asm volatile(                                                                               \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"                                            \
          "wgmma.mma_async.sync.aligned.m64n16k16.f32." NAME "." NAME                             \
          " {"                                                                                    \
          "%0, %1, %2, %3, %4, %5, %6, %7"                                                        \
          "}, %8, %9, p, 1, 1, 0, 0;\n}\n"                                                        \
          : SRT_WGMMA_ACC4(d, 0), SRT_WGMMA_ACC4(d, 4)                                            \
          : "l"(a), "l"(b), "r"(keep));                                                           \
    }                                                                                             \
  };
SRT_WGMMA_16(__nv_bfloat16, "bf16")
SRT_WGMMA_16(__half, "f16")
#undef SRT_WGMMA_16

#define SRT_WGMMA_32(T, NAME)                                                                      \
  template <>                                                                                      \
  struct Wgmma<T, 32> {                                                                            \
    static __device__ __forceinline__ void run(float (&d)[16], uint64_t a, uint64_t b, int keep) { \
      asm volatile(                                                                                \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"                                             \
          "wgmma.mma_async.sync.aligned.m64n32k16.f32." NAME "." NAME                              \
          " {"                                                                                     \
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"                   \
          "}, %16, %17, p, 1, 1, 0, 0;\n}\n"                                                       \
          : SRT_WGMMA_ACC4(d, 0), SRT_WGMMA_ACC4(d, 4), SRT_WGMMA_ACC4(d, 8),                      \
            SRT_WGMMA_ACC4(d, 12)                                                                  \
          : "l"(a), "l"(b), "r"(keep));                                                            \
    }                                                                                              \
  };
SRT_WGMMA_32(__nv_bfloat16, "bf16")
SRT_WGMMA_32(__half, "f16")
#undef SRT_WGMMA_32

#define SRT_WGMMA_64(T, NAME)                                                                      \
  template <>                                                                                      \
  struct Wgmma<T, 64> {                                                                            \
    static __device__ __forceinline__ void run(float (&d)[32], uint64_t a, uint64_t b, int keep) { \
      asm volatile(                                                                                \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                             \
          "wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME                              \
          " {"                                                                                     \
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "       \
          "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"                   \
          "}, %32, %33, p, 1, 1, 0, 0;\n}\n"                                                       \
          : SRT_WGMMA_ACC4(d, 0), SRT_WGMMA_ACC4(d, 4), SRT_WGMMA_ACC4(d, 8),                      \
            SRT_WGMMA_ACC4(d, 12), SRT_WGMMA_ACC4(d, 16), SRT_WGMMA_ACC4(d, 20),                   \
            SRT_WGMMA_ACC4(d, 24), SRT_WGMMA_ACC4(d, 28)                                           \
          : "l"(a), "l"(b), "r"(keep));                                                            \
    }                                                                                              \
  };
SRT_WGMMA_64(__nv_bfloat16, "bf16")
SRT_WGMMA_64(__half, "f16")
#undef SRT_WGMMA_64

#define SRT_WGMMA_128(T, NAME)                                                                     \
  template <>                                                                                      \
  struct Wgmma<T, 128> {                                                                           \
    static __device__ __forceinline__ void run(float (&d)[64], uint64_t a, uint64_t b, int keep) { \
      asm volatile(                                                                                \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                             \
          "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME                             \
          " {"                                                                                     \
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "       \
          "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "       \
          "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "       \
          "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"                   \
          "}, %64, %65, p, 1, 1, 0, 0;\n}\n"                                                       \
          : SRT_WGMMA_ACC4(d, 0), SRT_WGMMA_ACC4(d, 4), SRT_WGMMA_ACC4(d, 8),                      \
            SRT_WGMMA_ACC4(d, 12), SRT_WGMMA_ACC4(d, 16), SRT_WGMMA_ACC4(d, 20),                   \
            SRT_WGMMA_ACC4(d, 24), SRT_WGMMA_ACC4(d, 28), SRT_WGMMA_ACC4(d, 32),                   \
            SRT_WGMMA_ACC4(d, 36), SRT_WGMMA_ACC4(d, 40), SRT_WGMMA_ACC4(d, 44),                   \
            SRT_WGMMA_ACC4(d, 48), SRT_WGMMA_ACC4(d, 52), SRT_WGMMA_ACC4(d, 56),                   \
            SRT_WGMMA_ACC4(d, 60)                                                                  \
          : "l"(a), "l"(b), "r"(keep));                                                            \
    }                                                                                              \
  };
SRT_WGMMA_128(__nv_bfloat16, "bf16")
SRT_WGMMA_128(__half, "f16")
#undef SRT_WGMMA_128

#undef SRT_WGMMA_ACC4

}  // namespace srt::cuda::hopper
