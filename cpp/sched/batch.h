// The plan of one step as flat arrays: what the device reads, and what Python wants to know.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/types.h"
#include "sched/config.h"
#include "sched/sequence.h"

namespace srt {

// One step, in the caller's terms. Arrays by sample stand in sample order, arrays by logit row
// hold the samples first and the prompt-logprob rows behind them.
struct StepPlan {
  StepId step = 0;
  int64_t num_bytes = 0;  // of the message: what is copied to the device
  int32_t num_seqs = 0;
  int32_t num_decode = 0;
  int32_t num_tokens = 0;
  int32_t num_samples = 0;
  int32_t num_logits = 0;
  int32_t num_masked = 0;  // samples that expect a row of the grammar bitmask
  int32_t num_drafts = 0;  // of the decodes, guesses about what follows another
  int32_t max_q_len = 0;
  int32_t max_seq_len = 0;
  int32_t any_sampling_flags = 0;  // OR over the samples
  bool all_greedy = true;
  int32_t max_top_logprobs = 0;
  int32_t num_new_seqs = 0;       // admitted in this step
  int32_t num_cached_tokens = 0;  // that these found in the cache
  int32_t num_extend_tokens = 0;
  int32_t num_retracted = 0;
  std::vector<SeqId> sample_seq_ids;
  std::vector<SeqId> logit_seq_ids;
  std::vector<int32_t> logit_positions;  // position of the token that the row predicts
  // Prompts of sequences with max_new_tokens 0 that end with this step: id, and place in the step.
  std::vector<SeqId> prompt_end_seq_ids;
  std::vector<int32_t> prompt_end_seqs;
  int32_t num_prefix_groups = 0;
  std::vector<int32_t> prefix_groups;  // by decode: group that shares a prefix, -1: none
  std::vector<int32_t> prefix_pages;   // by decode: pages that its group shares

  bool is_decode_only() const { return num_decode == num_seqs; }
};

// A sequence's part in a step: query tokens [start, start + q_len).
struct BatchItem {
  Sequence* seq = nullptr;
  int32_t start = 0;
  int32_t q_len = 0;
  int32_t output_idx = -1;   // of the token that is sampled; -1: none is
  int32_t first_update = 0;  // page-table entries from here on are new
  int32_t logit_begin = 0;   // prompt positions scored by this part: [begin, end)
  int32_t logit_end = 0;
  bool is_new = false;
  bool is_decode = false;
  bool is_draft = false;  // a decode whose token is a guess
};

// Collects the items of a step (decodes first), then writes the message.
class Batch {
 public:
  explicit Batch(const SchedulerConfig& config) : config_(config) {}

  void clear();
  bool empty() const { return items_.empty(); }
  void add(const BatchItem& item);
  std::span<const BatchItem> items() const { return items_; }
  int32_t num_tokens() const { return num_tokens_; }
  int32_t num_decode() const { return num_decode_; }
  int32_t num_logits() const { return num_samples_ + num_prompt_logits_; }

  // Writes docs/contracts.md section 3 into `message`, which holds config.message_words() words,
  // and fills the parts of `plan` that follow from it. O(query tokens + page updates).
  void write(StepId step, std::span<int32_t> message, StepPlan& plan) const;

 private:
  const SchedulerConfig& config_;
  std::vector<BatchItem> items_;
  int32_t num_tokens_ = 0;
  int32_t num_decode_ = 0;
  int32_t num_samples_ = 0;
  int32_t num_prompt_logits_ = 0;
  int32_t num_updates_ = 0;
};

}  // namespace srt
