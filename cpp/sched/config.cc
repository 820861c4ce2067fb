#include "sched/config.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "core/step_message.h"

namespace srt {

Policy parse_policy(std::string_view name) {
  if (name == "lpm") return Policy::kLpm;
  if (name == "fcfs") return Policy::kFcfs;
  if (name == "random") return Policy::kRandom;
  if (name == "dfs-weight") return Policy::kDfsWeight;
  throw InvalidArgument("policy must be lpm, fcfs, random or dfs-weight, not '" +
                        std::string(name) + "'");
}

void SchedulerConfig::validate() const {
  expect(num_pages >= 2, "num_pages must be at least 2: page 0 is scratch");
  expect(page_size >= 1, "page_size must be at least 1");
  expect(int64_t{num_pages} * page_size < (int64_t{1} << 31), "slots must fit 31 bits");
  expect(max_running >= 1, "max_running must be at least 1");
  expect(max_seq_len >= 2, "max_seq_len must be at least 2");
  expect(max_step_tokens >= 1, "max_step_tokens must be at least 1");
  expect(max_prefill_tokens >= 1, "max_prefill_tokens must be at least 1");
  expect(max_mixed_tokens >= 0, "max_mixed_tokens must not be negative");
  expect(min_new_token_ratio >= 0.0, "min_new_token_ratio must not be negative");
  expect(init_new_token_ratio >= min_new_token_ratio,
         "init_new_token_ratio must be at least min_new_token_ratio");
  expect(new_token_ratio_decay >= 0.0, "new_token_ratio_decay must not be negative");
  expect(clip_max_new_tokens >= 1, "clip_max_new_tokens must be at least 1");
  expect(work_words >= 0 && max_extra_words >= 0 && shared_prefix_pages >= 0,
         "work_words, max_extra_words and shared_prefix_pages must not be negative");
  expect(!(whole_prompts && enable_radix),
         "whole_prompts needs enable_radix off: a prefix depends on what follows it");
  expect(max_step_logits == 0 || max_step_logits > max_running,
         "max_step_logits must be 0 or larger than max_running");
}

int32_t SchedulerConfig::max_cached_updates() const {
  constexpr int64_t kUsual = 1 << 16;  // 1 MiB of updates: 20 us on PCIe
  const int64_t all = int64_t{max_running} * max_pages_per_seq();
  return static_cast<int32_t>(std::max<int64_t>(max_pages_per_seq(), std::min(all, kUsual)));
}

int32_t SchedulerConfig::max_tokens() const { return std::max(max_step_tokens, max_running); }

size_t SchedulerConfig::message_words() const {
  const auto rows = static_cast<size_t>(max_running);
  const auto tokens = static_cast<size_t>(max_tokens());
  // Each sequence of a step takes at most one page more than its tokens fill.
  const size_t updates = static_cast<size_t>(max_cached_updates()) + tokens + rows;
  const size_t words = msg::kHeaderWords + rows * msg::kSeqWords + tokens * msg::kTokenWords +
                       updates * msg::kUpdateWords + tokens * msg::kLogitWords +
                       rows * msg::kSamplingWords + rows * static_cast<size_t>(max_extra_words) +
                       static_cast<size_t>(work_words);
  return words + 2 * msg::kAlignWords;  // the extra and work sections start aligned
}

}  // namespace srt
