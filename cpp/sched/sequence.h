// One request on its way: its tokens, its pages, its hold on the prefix tree, its phase.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cache/radix_tree.h"
#include "core/types.h"
#include "sched/trace.h"

namespace srt {

struct SamplingParams {
  float temperature = 1.0F;  // 0: greedy
  float top_p = 1.0F;
  int32_t top_k = -1;  // -1: off
  float min_p = 0.0F;
  float frequency_penalty = 0.0F;
  float presence_penalty = 0.0F;
  float repetition_penalty = 1.0F;
  uint64_t seed = 0;
  std::vector<TokenId> stop_token_ids;
  std::vector<std::pair<TokenId, float>> logit_bias;
  bool return_logprob = false;
  int32_t logprob_start = -1;  // first prompt position whose logprob is wanted; -1: none
  int32_t top_logprobs = 0;
};

// What the caller of Scheduler::add() says.
struct NewSequence {
  SeqId id = 0;
  std::vector<TokenId> tokens;
  int32_t max_new_tokens = 0;  // 0: fill the cache (and score the prompt), then end
  int32_t min_new_tokens = 0;
  SamplingParams sampling;
  int32_t priority = 0;  // larger runs earlier
  std::string ns;        // prefixes are shared within one namespace only
  bool sync = false;     // each token must reach the host before the next is planned
};

enum class Phase : uint8_t { kWaiting, kExtend, kDecode };

// Invariants: pages[: lock.num_pages()] belong to the tree and are held by `lock`, the pages
// behind them to this sequence alone. KV exists or is planned for positions below kv_len.
struct Sequence {
  NewSequence request;  // request.tokens moves into `tokens`
  uint64_t serial = 0;  // never used twice; 0: nobody lives here
  uint64_t order = 0;   // place in the waiting queue: arrival, or drawn by lot
  Phase phase = Phase::kWaiting;
  bool was_retracted = false;
  bool is_announced = false;  // an event told how much of the prompt was cached
  int32_t prompt_len = 0;
  int32_t max_new_tokens = 0;  // what context and pool leave of the wish
  int32_t cached_len = 0;      // found in the cache when first admitted
  int32_t row = -1;
  int32_t kv_len = 0;
  int32_t num_pending = 0;      // sampled by steps in flight, unknown to the host
  int32_t num_table_pages = 0;  // entries of the device's page table that are written
  int32_t next_logprob = 0;     // prompt position that is scored next
  std::vector<TokenId> tokens;  // prompt, then committed output
  std::vector<TokenId> drafts;  // what probably follows: for the next decode, or run by it
  std::vector<PageId> pages;
  RadixLock lock;
  uint64_t match_version = ~uint64_t{0};  // of the tree, when `match` was found
  RadixTree::Peek match;
  Trace trace;

  int32_t num_known() const { return static_cast<int32_t>(tokens.size()); }
  // Only sync sequences have any; asked in this order, others cost no look at them.
  bool has_drafts() const { return request.sync && !drafts.empty(); }
  // -1: only the device knows it.
  TokenId token_at(int32_t position) const {
    if (position < num_known()) return tokens[static_cast<size_t>(position)];
    const auto ahead = static_cast<size_t>(position - num_known());
    return has_drafts() && ahead < drafts.size() ? drafts[ahead] : -1;
  }
  int32_t num_output() const { return num_known() - prompt_len; }
  // Output tokens once everything in flight has arrived.
  int32_t num_planned_output() const { return num_output() + num_pending; }
  int32_t num_left() const { return max_new_tokens - num_planned_output(); }
  int32_t num_pages() const { return static_cast<int32_t>(pages.size()); }
  bool wants_prompt_logprobs() const {
    return request.sampling.logprob_start >= 0 && next_logprob < prompt_len;
  }
  // The token that the logits of position next_logprob come from: it must be computed.
  int32_t max_cached_len() const {
    const int32_t all_but_last = num_known() - 1;
    return wants_prompt_logprobs() ? std::min(all_but_last, next_logprob - 1) : all_but_last;
  }
  bool waits_for_commit() const { return request.sync && num_pending > 0; }
  bool wants_decode() const {
    return phase == Phase::kDecode && num_left() > 0 && !waits_for_commit();
  }

  void start(NewSequence&& wish, uint64_t new_serial);
  void reset();  // back to nobody; the caller has freed the pages
};

}  // namespace srt
