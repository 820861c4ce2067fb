// The choice of the next token, by the formulas of docs/contracts.md section 3.1, and logprobs.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace srt::cpu {

struct SampleParams {
  DType dtype;         // f32, bf16 or f16
  const void* logits;  // [rows, vocab], row stride logits_stride
  int64_t rows, vocab, logits_stride;
  const int32_t* records;      // [rows, 16], see core/step_message.h
  const int32_t* sample_rows;  // [rows]
  const int32_t* extra;        // the message's extra section
  const int32_t* seq_rows;     // [num_seqs]
  const int32_t* seq_lens;     // [num_seqs]
  const int32_t* prompt_lens;  // [num_seqs]
  const int32_t* page_table;   // [.., page_stride], by row
  int64_t page_stride, page_size;
  const int32_t* slot_tokens;  // [num_pages * page_size]
  const int32_t* bitmask;      // [.., bitmask_stride] or nullptr
  int64_t bitmask_stride;
  int32_t* last_tokens;  // written at sample_rows
  int32_t* tokens;       // [rows]
};

struct LogprobParams {
  DType dtype;
  const void* logits;  // [rows, vocab], row stride logits_stride
  int64_t rows, vocab, logits_stride;
  const int32_t* tokens;  // [rows]
  float* logprobs;        // [rows]
};

void sample(const SampleParams& p);
void token_logprobs(const LogprobParams& p);

}  // namespace srt::cpu
