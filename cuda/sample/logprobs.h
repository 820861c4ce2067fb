// log_softmax of rows of logits: at one token, and at the most likely ones.
#pragma once

#include "common/launch.h"

namespace srt::cuda {

struct LogprobsParams {
  const void* logits;     // dtype [num_rows, vocab], rows logits_stride apart
  const int* tokens;      // [num_rows], nullptr: none asked for
  float* token_logprobs;  // [num_rows], written where tokens is set
  float* top_logprobs;    // [num_rows, top], best first; equal ones by token
  int* top_tokens;        // [num_rows, top]
  int64_t logits_stride;
  int num_rows;
  int vocab;
  int top;  // 0 to kMaxTopLogprobs, at most vocab
  Dtype dtype;
  bool pdl;
};

constexpr int kMaxTopLogprobs = 128;

[[nodiscard]] cudaError_t logprobs(const LogprobsParams& p, cudaStream_t stream);

}  // namespace srt::cuda
