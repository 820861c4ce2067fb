// acc[64 x N] (+)= A[64 x 32] B[N x 32]^T in e4m3 for one warpgroup, both in shared memory,
// K-major.
//
// The fragment of acc is laid out as in gemm/wgmma.cuh. The tensor cores keep about 14 bits of a
// running sum of fp8 products, so long sums are to be taken over by float32 registers in between.
#pragma once

#include "common/hopper.cuh"

namespace srt::cuda::hopper {

template <int kN>
struct WgmmaE4m3;

#define SRT_FP8_ACC4(d, i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define SRT_FP8_ACC16(d, i) \
  SRT_FP8_ACC4(d, i), SRT_FP8_ACC4(d, (i) + 4), SRT_FP8_ACC4(d, (i) + 8), SRT_FP8_ACC4(d, (i) + 12)

// keep: 0 overwrites acc.
#define SRT_WGMMA_FP8(N, REGISTERS, A, B, KEEP, ...)                                              \
  template <>                                                                                     \
  struct WgmmaE4m3<N> {                                                                           \
    static __device__ __forceinline__ void run(float (&d)[N / 2], uint64_t a, uint64_t b,         \
                                               int keep) {                                        \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " KEEP                                       \
                   ", 0;\n"                                                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" REGISTERS "}, " A \
                   ", " B ", p, 1, 1;\n}\n"                                                       \
                   : __VA_ARGS__                                                                  \
                   : "l"(a), "l"(b), "r"(keep));                                                  \
    }                                                                                             \
  };

#define SRT_FP8_R4 "%0, %1, %2, %3"
#define SRT_FP8_R8 SRT_FP8_R4 ", %4, %5, %6, %7"
#define SRT_FP8_R12 SRT_FP8_R8 ", %8, %9, %10, %11"
#define SRT_FP8_R16 SRT_FP8_R12 ", %12, %13, %14, %15"
#define SRT_FP8_R24 SRT_FP8_R16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define SRT_FP8_R32 SRT_FP8_R24 ", %24, %25, %26, %27, %28, %29, %30, %31"

SRT_WGMMA_FP8(8, SRT_FP8_R4, "%4", "%5", "%6", SRT_FP8_ACC4(d, 0))
SRT_WGMMA_FP8(16, SRT_FP8_R8, "%8", "%9", "%10", SRT_FP8_ACC4(d, 0), SRT_FP8_ACC4(d, 4))
SRT_WGMMA_FP8(24, SRT_FP8_R12, "%12", "%13", "%14", SRT_FP8_ACC4(d, 0), SRT_FP8_ACC4(d, 4),
              SRT_FP8_ACC4(d, 8))
SRT_WGMMA_FP8(32, SRT_FP8_R16, "%16", "%17", "%18", SRT_FP8_ACC16(d, 0))
SRT_WGMMA_FP8(48, SRT_FP8_R24, "%24", "%25", "%26", SRT_FP8_ACC16(d, 0), SRT_FP8_ACC4(d, 16),
              SRT_FP8_ACC4(d, 20))
SRT_WGMMA_FP8(64, SRT_FP8_R32, "%32", "%33", "%34", SRT_FP8_ACC16(d, 0), SRT_FP8_ACC16(d, 16))

#undef SRT_WGMMA_FP8
#undef SRT_FP8_R4
#undef SRT_FP8_R8
#undef SRT_FP8_R12
#undef SRT_FP8_R16
#undef SRT_FP8_R24
#undef SRT_FP8_R32
#undef SRT_FP8_ACC4
#undef SRT_FP8_ACC16

}  // namespace srt::cuda::hopper
