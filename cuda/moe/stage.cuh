// A stage of the grouped GEMM in shared memory: some columns of x and of w, and how mma.sync gets
// them.
//
// Both operands lie in pieces of 16 bytes, swizzled so that no bank is met twice. fp8 is widened to
// T in registers, exactly; the four values that ldmatrix then hands to a lane are neighbours, so x
// is read in that order, too.
#pragma once

#include "common/mma.cuh"

namespace srt::cuda::moe {

// kDepth: columns, 64 or, in fp8, 128.
template <typename T, bool kFp8, int kDepth>
struct Stage {
  static constexpr int kWItem = kFp8 ? 1 : 2;  // bytes of a value of w
  static constexpr int kXRowBytes = kDepth * 2;
  static constexpr int kWRowBytes = kDepth * kWItem;
  static constexpr int kXChunks = kXRowBytes / 16;  // pieces of a row
  static constexpr int kWChunks = kWRowBytes / 16;

  __device__ __forceinline__ static uint32_t x_piece(int row, int chunk) {
    chunk ^= kFp8 ? row % 4 * 2 : row % 8;
    return static_cast<uint32_t>(row * kXRowBytes + chunk * 16);
  }
  __device__ __forceinline__ static uint32_t w_piece(int row, int chunk) {
    chunk ^= kWChunks == 4 ? row / 2 % 4 : row % 8;
    return static_cast<uint32_t>(row * kWRowBytes + chunk * 16);
  }

  // 16 rows of x from `row` on, columns [16 step, 16 step + 16): the A operand.
  __device__ __forceinline__ static void load_x(uint32_t (&a)[4], uint32_t x, int row, int step) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (kFp8) {
      const uint32_t at = x + x_piece(row + lane / 4, 2 * step) + lane % 4 * 8;
      const uint2 upper = ptx::load_shared_8(at);
      const uint2 lower = ptx::load_shared_8(at + 8 * kXRowBytes);
      a[0] = upper.x, a[1] = lower.x, a[2] = upper.y, a[3] = lower.y;
    } else {
      const int matrix = lane / 8;
      ptx::ldmatrix_x4(a, x + x_piece(row + matrix % 2 * 8 + lane % 8, 2 * step + matrix / 2));
    }
  }

  // 16 rows of w from `row` on, columns [32 pair, 32 pair + 32): B operands [step][8 rows][half].
  __device__ __forceinline__ static void load_w(uint32_t (&b)[2][2][2], uint32_t w, int row,
                                                int pair) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int matrix = lane / 8;
    const int at = row + matrix / 2 * 8 + lane % 8;
    uint32_t r[4];
    if constexpr (kFp8) {
      ptx::ldmatrix_x4(r, w + w_piece(at, 2 * pair + matrix % 2));
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          b[step][n][0] = widen(__byte_perm(r[2 * n + step], 0, 0x1404));
          b[step][n][1] = widen(__byte_perm(r[2 * n + step], 0, 0x3424));
        }
    } else {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        ptx::ldmatrix_x4(r, w + w_piece(at, 2 * (2 * pair + step) + matrix % 2));
        b[step][0][0] = r[0], b[step][0][1] = r[1], b[step][1][0] = r[2], b[step][1][1] = r[3];
      }
    }
  }

  // Bytes 1 and 3, of e4m3: its exponent and mantissa move to where T has them, and a factor makes
  // up for the other bias.
  __device__ __forceinline__ static uint32_t widen(uint32_t bytes) {
    constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
    constexpr int kShift = kBf16 ? 4 : 1;
    constexpr uint32_t kFactor = kBf16 ? 0x7b807b80u : 0x5c005c00u;  // 2^120, 2^8
    const uint32_t bits = ((bytes & 0x7f007f00u) >> kShift) | (bytes & 0x80008000u);
    uint32_t wide;
    if constexpr (kBf16) {
      asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(wide) : "r"(bits), "r"(kFactor), "r"(0x80008000u));
    } else {
      asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(wide) : "r"(bits), "r"(kFactor));
    }
    return wide;
  }
};

}  // namespace srt::cuda::moe
