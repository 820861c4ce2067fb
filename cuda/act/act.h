// Gated activations and the logits softcap.
#pragma once

#include "common/launch.h"

namespace srt::cuda {

enum class Activation : uint8_t { kSilu, kGeluErf, kGeluTanh };

struct ActAndMulParams {
  const void* x;  // dtype [num_rows, 2 * width], rows x_stride apart: gates, then what they scale
  void* out;      // [num_rows, width], contiguous; dtype, or fp8 e4m3 where scales is set
  float* scales;  // [num_rows]: value = fp8 * scale. nullptr: out has x's dtype
  int64_t x_stride;
  int num_rows;
  int width;  // a multiple of 8
  Activation activation;
  Dtype dtype;
  bool pdl;
};

[[nodiscard]] cudaError_t act_and_mul(const ActAndMulParams& p, cudaStream_t stream);

struct SoftcapParams {
  void* x;  // dtype [count], contiguous; replaced by cap * tanh(x / cap)
  int64_t count;
  float cap;
  Dtype dtype;
  bool pdl;
};

[[nodiscard]] cudaError_t softcap(const SoftcapParams& p, cudaStream_t stream);

}  // namespace srt::cuda
