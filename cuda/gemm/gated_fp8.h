// y = silu(x Wg^T) * (x Wu^T) in e4m3 for up to 128 rows of x: W streams through once, y comes in
// e4m3 with a scale for each row and 128 columns.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace srt::cuda {

// Shapes   x e4m3 [m, k] rows x_stride apart; w e4m3 [n, k] contiguous: gate's rows, then up's;
//          y [m, n / 2] rows y_stride apart: e4m3 where y_scale or y_scales is set, else bf16.
// Scales   value = stored * scale. x_scales [m], or one where one_x_scale; w_scales [n].
// Limits   1 <= m <= 128; n % 32 == 0; k % 16 == 0; pointers 16-byte aligned.
struct GatedFp8Params {
  const uint8_t* x;
  const float* x_scales;
  const uint8_t* w;
  const float* w_scales;
  void* y;
  const float* y_scale;    // y is stored as y / *y_scale
  float* y_scales;         // written: [n / 256][m], a scale for each 128 columns of y
  int64_t y_scale_stride;  // from a group's scales to the next one's
  int64_t x_stride;
  int64_t y_stride;  // elements of y
  int m;
  int n;
  int k;
  bool one_x_scale;
  bool pdl;      // start before the previous kernel ends: weights are read ahead of it
  int ctas;      // persistent CTAs; 0: chosen by shape
  int stages;    // of the pipeline of weights, at least 2; 0: chosen
  int x_stages;  // of that of x, at least 2 and at most `stages`; 0: chosen
};

// Bound: HBM, n * k bytes. Deterministic. sm_90a only.
[[nodiscard]] cudaError_t gated_fp8_gemm(const GatedFp8Params& p, cudaStream_t stream);

}  // namespace srt::cuda
