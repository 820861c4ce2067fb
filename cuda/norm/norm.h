// RMSNorm and LayerNorm over rows, with the residual add before and the fp8 quantization after.
#pragma once

#include "common/fp8_rows.h"
#include "common/launch.h"

namespace srt::cuda {

// Row r of x and out lies at (r / inner) * outer_stride + (r % inner) * inner_stride elements.
struct RowLayout {
  int64_t outer_stride;
  int64_t inner_stride;
  int inner;  // 1 for plain [num_rows, hidden]
};

struct NormParams {
  const void* x;   // dtype [num_rows, hidden] in x_rows
  void* residual;  // dtype [num_rows, hidden], contiguous; x is added to it in place, or nullptr
  const void* weight;  // dtype [hidden]
  const void* bias;    // dtype [hidden], nullptr: none
  void* out;           // dtype, in out_rows; may be x. e4m3 and contiguous where fp8 is set
  Fp8Rows fp8;
  RowLayout x_rows;
  RowLayout out_rows;
  int num_rows;
  int hidden;  // a multiple of 8, up to kMaxNormHidden
  float eps;
  float weight_offset;  // 0: round, then times weight (HF Llama); else times (weight + offset) in
                        // fp32
  bool centered;        // LayerNorm: subtract the mean, one rounding at the end
  Dtype dtype;
  bool pdl;
};

constexpr int kMaxNormHidden = 16384;

[[nodiscard]] cudaError_t norm(const NormParams& p, cudaStream_t stream);

}  // namespace srt::cuda
