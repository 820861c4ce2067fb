// Unpacks a step message into the step's fixed buffers; docs/contracts.md section 3.
#pragma once

#include <cstdint>

namespace srt::cpu {

struct StepParams {
  const int32_t* message;
  int64_t message_words;
  int32_t* page_table;  // [num_rows, page_stride]; the last row is scratch
  int64_t num_rows, page_stride;
  const int32_t* last_tokens;  // [num_rows]
  int32_t* slot_tokens;        // [num_slots]
  int64_t num_slots;
  int32_t *token_ids, *positions, *slots, *token_seq;  // [max_tokens]
  int32_t *rows, *seq_lens, *prompt_lens;              // [max_seqs]
  int32_t* q_indptr;                                   // [max_seqs + 1]
  int32_t *logit_idx, *logit_targets;                  // [max_logits]
  int32_t* sampling;                                   // [max_seqs, 16]
  int32_t* sample_rows;                                // [max_seqs]
  int64_t max_tokens, max_seqs, max_logits;
  int64_t padded_seqs, padded_tokens;
};

// Throws InvalidArgument where the message does not fit the buffers or itself.
void prepare_step(const StepParams& p);

}  // namespace srt::cpu
