// One token per row of logits: bias, penalties, masks, temperature, filters and the draw.
#pragma once

#include "common/launch.h"

namespace srt::cuda {

struct SampleParams {
  const void* logits;      // dtype [num_rows, vocab], rows logits_stride apart; not modified
  const int* message;      // the step's message (stop ids and biases)
  const int* sampling;     // [num_rows, 16] records
  const int* sample_rows;  // [num_rows]: where last_tokens is written
  const int* rows;         // [B], by sequence
  const int* seq_lens;     // [B]
  const int* prompt_lens;  // [B]
  const int* page_table;   // [max_running + 1, max_pages_per_seq]
  const int* slot_tokens;  // [num_pages * page_size]
  const int* bitmask;      // [R, bitmask_words], bit set: allowed. nullptr: no row is masked
  int* last_tokens;        // [max_running + 1]
  int* tokens;             // [num_rows]
  int64_t logits_stride;
  int num_rows;
  int vocab;
  int max_pages_per_seq;
  int page_size;
  int bitmask_words;
  int flags;  // the or of the rows' flags, as far as the host knows: saves a launch and shared
              // memory. -1: unknown
  Dtype dtype;
  bool pdl;
};

[[nodiscard]] cudaError_t sample(const SampleParams& p, cudaStream_t stream);

}  // namespace srt::cuda
