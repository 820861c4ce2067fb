// y = (x xs) (W ws)^T + b in e4m3 for up to 128 rows of x: W streams through once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace srt::cuda {

// Shapes   x e4m3 [m, k] rows x_stride apart; w e4m3 [n, k] contiguous; bias bf16 [n] or null;
//          y bf16 [m, n] rows y_stride apart.
// Scales   value = stored * scale. x_scales [m], or one where one_x_scale; w_scales [n]. Where
//          x_scale_stride is set, x has scales of groups of 128 along k, [ceil(k / 128)][m], groups
//          x_scale_stride floats apart: a multiple of 8, at least m.
// Limits   1 <= m <= 128; n % 8 == 0; k % 16 == 0; pointers 16-byte aligned, w_scales, too.
struct WideFp8Params {
  const uint8_t* x;
  const float* x_scales;
  const uint8_t* w;
  const float* w_scales;
  const void* bias;
  void* y;
  int64_t x_stride;
  int64_t x_scale_stride;
  int64_t y_stride;  // elements of y
  int m;
  int n;
  int k;
  bool one_x_scale;
  bool pdl;    // start before the previous kernel ends: weights are read ahead of it
  int tile;    // rows of w per CTA: 48, 64 or 96; 0: chosen by shape
  int split;   // CTAs of a cluster sharing one tile along k, 1 to 4; 0: chosen by shape
  int ctas;    // persistent CTAs when split is 1; 0: chosen by shape
  int stages;  // of the pipeline, at least 2; 0: chosen by shape
};

// Bound: HBM, n * k bytes. Deterministic for a given shape and split. sm_90a only.
[[nodiscard]] cudaError_t wide_fp8_gemm(const WideFp8Params& p, cudaStream_t stream);

}  // namespace srt::cuda
