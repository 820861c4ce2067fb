// y = x W^T for 65 rows of x and more: tiles chosen so that all multiprocessors end together.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/launch.h"

namespace srt::cuda {

// Shapes   x [m, k] rows x_stride elements apart; w [n, k] contiguous; bias [n] or null;
//          y [m, n] rows y_stride apart, or with `gated` y [m, n / 2] = silu(x Wg^T) * (x Wu^T)
//          where Wg is the first half of w's rows and Wu the second.
// Limits   n % 8 == 0 (gated: n % 16 == 0); k % 8 == 0; all pointers 16-byte aligned.
struct WideGemmParams {
  const void* x;
  const void* w;
  const void* bias;
  void* y;
  int m;
  int n;
  int k;
  int64_t x_stride;
  int64_t y_stride;
  Dtype dtype;  // kF16 or kBF16, of x, w, bias and y; accumulation is fp32
  bool gated;   // neither bias nor add
  bool add;     // y += instead of y =
  bool pdl;     // start before the previous kernel ends: weights are read ahead of it
  int tile;     // rows of w a CTA takes: 128, 192 or 256, gated 128 or 224; 0: chosen by shape
  int split;    // CTAs sharing one tile along k: 1, 2, 4 or 8, at most 4 in pairs; 0: chosen
  int pair;     // CTAs sharing one tile's weights, `rows` of x each: 1 or 2; 0: chosen by m
  int rows;     // of x a CTA takes: 128, or 192 in tiles of 192 (gated 224); 0: chosen by m
};

// Bound: the larger of HBM, n * k * 2 bytes, and the tensor cores, 2 * m * n * k operations.
// Deterministic for a given shape, tile and split. sm_90a only.
[[nodiscard]] cudaError_t wide_gemm(const WideGemmParams& p, cudaStream_t stream);

}  // namespace srt::cuda
