// y = (x xs) (W ws)^T in e4m3 for few rows of x: W streams through once at memory speed.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace srt::cuda {

// Shapes   x e4m3 [m, k] rows x_stride apart; w e4m3 [n, k] contiguous; bias bf16 [n] or null;
//          y bf16 [m, n] rows y_stride apart, or with `gated` y [m, n / 2] = silu(x Wg^T) * (x
//          Wu^T) where Wg is the first half of w's rows and Wu the second.
// Scales   value = stored * scale. Plain: x_scales [m], or one where one_x_scale; w_scales [n].
//          Where x_scale_stride is set, x has scales of groups of 128 along k, [ceil(k / 128)][m],
//          groups x_scale_stride floats apart: a multiple of 8, at least m. `grouped`: w has them,
//          too, [n, ceil(k / 128)]; a gated product takes both or none.
// Limits   1 <= m <= 64 (grouped: 128); n % 8 == 0 (gated: n % 16 == 0); k % 16 == 0; pointers
// 16-byte aligned.
struct SkinnyFp8Params {
  const uint8_t* x;
  const float* x_scales;
  const uint8_t* w;
  const float* w_scales;
  const void* bias;
  void* y;               // bf16; e4m3 where y_scale or y_scales is set, which is for gated ones
  const float* y_scale;  // y is stored as y / *y_scale; null: it is not
  float* y_scales;       // written: [n / 256][m], a scale for each 128 columns of y; not `grouped`
  int m;
  int n;
  int k;
  int64_t x_stride;
  int64_t y_stride;  // elements of y
  int64_t x_scale_stride;
  int64_t y_scale_stride;  // of y_scales, as x_scale_stride
  bool one_x_scale;
  bool grouped;
  bool gated;
  bool pdl;        // start before the previous kernel ends: weights are read ahead of it
  int row_groups;  // 64-row weight groups per CTA: 1, 2, or 4 from 33 rows on; 0: chosen by shape
  int split;       // CTAs of a cluster sharing one tile along k, 1 to 8; 0: chosen by shape
  int ctas;        // persistent CTAs when split is 1; 0: chosen by shape
};

// Bound: HBM, n * k bytes. Deterministic for a given shape and split. sm_90a only.
[[nodiscard]] cudaError_t skinny_fp8_gemm(const SkinnyFp8Params& p, cudaStream_t stream);

}  // namespace srt::cuda
