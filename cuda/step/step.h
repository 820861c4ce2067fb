// What happens on the device before the first layer: unpacking the step message, gathering rows.
#pragma once

#include "common/launch.h"

namespace srt::cuda {

// All int32. The message and the buffers are those of docs/contracts.md section 3.
struct PrepareStepParams {
  const int* message;
  int* page_table;         // [max_running + 1, max_pages_per_seq]
  const int* last_tokens;  // [max_running + 1]
  int* slot_tokens;        // [num_pages * page_size]
  int* token_ids;          // [T]
  int* positions;          // [T]
  int* slots;              // [T]
  int* token_seq;          // [T]
  int* rows;               // [B]
  int* seq_lens;           // [B]
  int* prompt_lens;        // [B]
  int* q_indptr;           // [B + 1]
  int* logit_idx;          // [L]
  int* logit_targets;      // [L]
  int* sampling;           // [B, 16]
  int* sample_rows;        // [B]
  int max_pages_per_seq;
  int scratch_row;  // max_running
  int padded_seqs;
  int padded_tokens;
  int max_logits;  // L
  bool pdl;
};

[[nodiscard]] cudaError_t prepare_step(const PrepareStepParams& p, cudaStream_t stream);

struct GatherRowsParams {
  const void* table;  // dtype [num_table_rows, width], rows table_stride apart
  const int* ids;     // [num_rows]
  void* out;          // dtype [num_rows, width], contiguous
  int64_t table_stride;
  int num_rows;
  int width;           // a multiple of 8
  int first_id;        // ids outside [first_id, first_id + num_table_rows) give rows of zeros,
  int num_table_rows;  // so that ranks that split a vocabulary add up
  float scale;         // multiplied in float32, 1: a copy
  Dtype dtype;
  bool pdl;
};

[[nodiscard]] cudaError_t gather_rows(const GatherRowsParams& p, cudaStream_t stream);

}  // namespace srt::cuda
