// RMSNorm (plain, or after adding to the residual) and LayerNorm.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace srt::cpu {

// Where row r of a [.., inner, size] array begins: heads inside a strided qkv need two strides.
struct RowLayout {
  int64_t inner, outer_stride, inner_stride;

  int64_t offset(int64_t r) const { return r / inner * outer_stride + r % inner * inner_stride; }
};

// dtype: f32, bf16 or f16, of every pointer.
struct RmsNormParams {
  DType dtype;
  const void* x;  // [rows, size], laid out as x_rows says
  RowLayout x_rows;
  void* residual;      // [rows, size] contiguous, or nullptr; residual += x, and that is normed
  const void* weight;  // [size]
  void* out;           // [rows, size], laid out as out_rows says; may be x
  RowLayout out_rows;
  int64_t rows, size;
  float eps, weight_offset;
};

struct LayerNormParams {
  DType dtype;
  const void* x;       // [rows, size], row stride x_stride
  const void* weight;  // [size]
  const void* bias;    // [size] or nullptr
  void* out;           // [rows, size] contiguous
  int64_t rows, size, x_stride;
  float eps;
};

void rms_norm(const RmsNormParams& p);
void layer_norm(const LayerNormParams& p);

}  // namespace srt::cpu
