// Gated activations and the logits softcap.
#pragma once

#include "common/fp8_rows.h"
#include "common/launch.h"

namespace srt::cuda {

enum class Activation : uint8_t { kSilu, kGeluErf, kGeluTanh };

struct ActAndMulParams {
  const void* x;  // dtype [num_rows, 2 * width], rows x_stride apart: gates, then what they scale
  void* out;      // [num_rows, width], contiguous; dtype, or e4m3 where fp8 is set
  Fp8Rows fp8;
  int64_t x_stride;
  int num_rows;
  int width;  // a multiple of 8; in fp8 up to kMaxFp8Width
  Activation activation;
  Dtype dtype;
  bool pdl;
};

constexpr int kMaxFp8Width = 32768;

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
