// A scheduler, the device that would run its steps, and a record of what every sequence is owed.
//
// The device's KV memory holds, for each slot, a name of the (namespace, token prefix) that its
// content was computed from. A step writes the names of its tokens and then reads every position of
// every sequence through the page table, so a page that is shared, reused or freed wrongly shows.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "sched/scheduler.h"
#include "step_reader.h"

namespace srt {

// One add() and what became of it. `tokens` holds the prompt and everything the device sampled.
struct Life {
  NewSequence request;
  std::vector<TokenId> tokens;
  std::vector<uint64_t> names;  // of the KV behind each prefix of `tokens`, grown on demand
  size_t num_prompt = 0;
  size_t max_output = 0;  // after clipping
  std::vector<TokenId> emitted;
  std::set<int32_t> scored;  // prompt positions whose logit row was planned
  std::optional<FinishReason> finish;
  int32_t cached_tokens = -1;
  bool was_planned = false;
};

// A greedy request whose prompt is one token a letter.
inline NewSequence request(SeqId id, std::string_view prompt, int32_t max_new_tokens) {
  NewSequence seq;
  seq.id = id;
  seq.tokens.assign(prompt.begin(), prompt.end());
  seq.max_new_tokens = max_new_tokens;
  seq.sampling.temperature = 0.0F;
  return seq;
}

// Room for a handful of short sequences; tests change what they are about.
inline SchedulerConfig small_config() {
  SchedulerConfig config;
  config.num_pages = 101;
  config.max_running = 8;
  config.max_seq_len = 64;
  config.max_step_tokens = 32;
  config.max_prefill_tokens = 32;
  config.self_check = true;
  return config;
}

class World {
 public:
  using Sampler = std::function<TokenId(const Life&)>;

  explicit World(const SchedulerConfig& config)
      : scheduler(config),
        config_(config),
        message_(config.message_words()),
        page_table_(static_cast<size_t>(config.max_running),
                    std::vector<PageId>(static_cast<size_t>(config.max_pages_per_seq()), 0)),
        last_tokens_(static_cast<size_t>(config.max_running), -1),
        memory_(static_cast<size_t>(config.num_pages) * static_cast<size_t>(config.page_size), 0) {}

  // The life of the sequence that holds `id` now, or last held it.
  Life& life(SeqId id) { return *lives_.at(id); }
  bool is_alive(SeqId id) { return lives_.contains(id) && !life(id).finish.has_value(); }
  size_t num_alive() const { return num_alive_; }
  size_t num_in_flight() const { return in_flight_.size(); }

  void add(NewSequence seq);
  void abort(SeqId id);
  // What probably follows, for a sync sequence that is not in flight.
  void draft(SeqId id, std::vector<TokenId> tokens) { scheduler.draft(id, std::move(tokens)); }
  bool is_in_flight(SeqId id);
  // Plans a step and runs it on the device; false: nothing to plan.
  bool schedule();
  void commit();
  // One step at a time until everybody is done; fails where nothing moves.
  void run_to_end();
  void check_drained();  // the pool is whole again

  Scheduler scheduler;
  StepPlan plan;  // of the last schedule() that returned true
  Sampler sampler = [](const Life&) { return 0; };

  StepReader step() const { return StepReader(message_); }
  // Query tokens that the last step ran for a sequence; 0: none.
  int32_t q_len(SeqId id) const;

 private:
  struct Sampled {
    std::shared_ptr<Life> life;
    TokenId token;
    bool counts;  // false: it follows a draft that was wrong
  };
  struct InFlight {
    StepId step;
    std::vector<Sampled> samples;
    std::vector<std::shared_ptr<Life>> prompts_done;
  };

  static uint64_t content(Life& life, size_t num_tokens);
  uint64_t content_of(const StepReader& step, size_t seq, size_t num_tokens) const;
  bool is_draft(const StepReader& step, size_t seq) const;
  void run_on_device(InFlight& flight);
  void check_plan(const StepReader& step) const;
  void check_prefix_groups(const StepReader& step) const;
  void write_kv(const StepReader& step);
  void read_kv(const StepReader& step) const;
  void check_logits(const StepReader& step);
  void sample(const StepReader& step, InFlight& flight);
  void expect_events(const Events& events);
  void owe(const std::shared_ptr<Life>& life, FinishReason reason, TokenId token, int32_t idx);

  struct Owed {
    SeqId id;
    TokenId token;
    FinishReason finish;
    int32_t sample_idx;
  };

  SchedulerConfig config_;
  std::vector<int32_t> message_;
  std::vector<std::vector<PageId>> page_table_;
  std::vector<TokenId> last_tokens_;
  std::vector<uint64_t> memory_;
  std::map<SeqId, std::shared_ptr<Life>> lives_;
  std::vector<std::shared_ptr<Life>> step_lives_;  // by sequence of the last step
  std::deque<InFlight> in_flight_;
  std::vector<Owed> owed_;
  size_t num_alive_ = 0;
};

}  // namespace srt
