// y = x w^T + b for few rows: bound by the bytes of w at one row, by multiply-adds from about 8 on.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace srt::cpu {

struct LinearParams {
  DType dtype;                    // f32, bf16 or f16: of x, bias, y, and of w without scales
  const void* x;                  // [rows, in], row stride x_stride
  const void* w;                  // [out, in], row stride w_stride; e4m3 where scales are set
  const float* scales = nullptr;  // [out, ceil(in / group)]: w = stored * scale
  int64_t group = 0;              // values along in that share a scale
  const void* bias;               // [out] or nullptr
  void* y;                        // [rows, out], row stride y_stride
  int64_t rows, in, out, x_stride, w_stride, y_stride;
  const float* x32;  // x as float32 [rows, in], row stride x32_stride; set by linear()
  int64_t x32_stride;
};

// Sums are float32, over independent partial sums; the result is rounded once.
void linear(LinearParams p);

}  // namespace srt::cpu
