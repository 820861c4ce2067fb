// y = x W^T for few rows of x: the weight matrix streams through once at memory speed.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/launch.h"

namespace srt::cuda {

// Shapes   x [m, k] rows x_stride elements apart; w [n, k] contiguous; bias [n] or null;
//          y [m, n] rows y_stride apart, or with `gated` y [m, n / 2] = silu(x Wg^T) * (x Wu^T)
//          where Wg is the first half of w's rows and Wu the second.
// Limits   1 <= m <= 128; n % 8 == 0 (gated: n % 16 == 0); k % 8 == 0; all pointers 16-byte
// aligned.
struct SkinnyGemmParams {
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
  bool gated;
  bool pdl;        // start before the previous kernel ends: weights are read ahead of it
  int row_groups;  // 64-row weight groups per CTA, 1 or 2; 0: chosen by shape
  int split;       // CTAs of a cluster sharing one tile along k, 1 to 8; 0: chosen by shape
  int ctas;        // persistent CTAs when split is 1; 0: chosen by shape
};

// Bound: HBM, n * k * 2 bytes. Deterministic for a given shape and split. sm_90a only.
[[nodiscard]] cudaError_t skinny_gemm(const SkinnyGemmParams& p, cudaStream_t stream);

}  // namespace srt::cuda
