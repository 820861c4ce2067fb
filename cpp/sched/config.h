// What a scheduler is told once, and the size of the message that follows from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace srt {

enum class Policy : uint8_t {
  kLpm,        // longest cached prefix first
  kFcfs,       // first come, first served
  kRandom,     // an order drawn from the seed as requests arrive
  kDfsWeight,  // the prefix subtree with the most waiting requests first
};

Policy parse_policy(std::string_view name);  // throws InvalidArgument on any other name

struct SchedulerConfig {
  int32_t num_pages = 0;           // of the KV pool, scratch page 0 included
  int32_t page_size = 1;           // tokens
  int32_t max_running = 0;         // rows
  int32_t max_seq_len = 0;         // prompt and output tokens of one sequence
  int32_t max_step_tokens = 0;     // query tokens of one step, decodes included
  int32_t max_prefill_tokens = 0;  // of them, at most so many of prompts
  // Beside decodes, while so few prompt tokens wait that all could run in half a step: at most so
  // many of prompts, so that no stream stalls for long. 0: no such bound.
  int32_t max_mixed_tokens = 0;
  Policy policy = Policy::kLpm;
  bool enable_radix = true;
  bool enable_mixed = true;             // false: a step extends or decodes, extends first
  double init_new_token_ratio = 0.7;    // share of its remaining tokens that a running sequence
  double min_new_token_ratio = 0.1;     // is expected to need: starts here, never goes below,
  double new_token_ratio_decay = 1e-3;  // and shrinks so much per decode step
  bool whole_prompts = false;           // a prompt runs in one step: attention looks ahead
  int32_t clip_max_new_tokens = 4096;   // output tokens counted in admission, at most
  uint64_t random_seed = 0;
  bool self_check = false;          // check_invariants() after every call: O(everything)
  int32_t work_words = 0;           // room behind the message for the attention planner
  int32_t max_step_logits = 0;      // rows of logits of one step; 0: no limit but the tokens
  int32_t max_extra_words = 1024;   // stop ids + 2 * logit biases of one sequence
  int32_t shared_prefix_pages = 0;  // group decodes that share so many pages; 0: do not

  void validate() const;  // throws InvalidArgument naming the field

  int32_t pages_for(int32_t num_tokens) const { return (num_tokens + page_size - 1) / page_size; }
  int32_t max_pages_per_seq() const { return pages_for(max_seq_len); }
  // Page-table entries that one step may copy for prefixes found in the cache; admission stops
  // there. One sequence always fits.
  int32_t max_cached_updates() const;
  int32_t max_tokens() const;  // query tokens in one message
  size_t message_words() const;
};

}  // namespace srt
