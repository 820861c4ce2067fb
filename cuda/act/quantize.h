// Rows of 16-bit values to e4m3.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/fp8_rows.h"
#include "common/launch.h"

namespace srt::cuda {

struct QuantizeParams {
  const void* x;  // dtype [num_rows, width], rows x_stride apart, 16-byte aligned
  uint8_t* out;   // e4m3 [num_rows, width], contiguous
  Fp8Rows fp8;
  int64_t x_stride;
  int num_rows;
  int width;  // a multiple of 8, up to kMaxQuantizeWidth
  Dtype dtype;
  bool pdl;
};

constexpr int kMaxQuantizeWidth = 32768;

[[nodiscard]] cudaError_t quantize(const QuantizeParams& p, cudaStream_t stream);

}  // namespace srt::cuda
