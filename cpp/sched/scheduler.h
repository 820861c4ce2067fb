// Owns every sequence from add() to its terminal event. One thread; no clock, and no randomness
// but the config's seed: time is the step counter, so the same calls give the same plans.
//
// Why pages may be shared and reused as early as they are: the device runs steps in order, and
// within a step every layer stores the K and V of all tokens before its attention reads any. So
//  - a prompt's whole pages enter the prefix tree when the step that computes them is *planned*:
//    later sequences, of the same step too, read them from the cache instead of computing them;
//  - pages given back at a commit, abort or retraction may be handed out by the next plan, though
//    a step in flight still writes a wasted token there: that write comes earlier.
// At most one prompt is partly extended at a time and it goes first in the next step, so requests
// behind it that share its prefix find all of it cached: none is computed twice.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "cache/page_pool.h"
#include "cache/radix_tree.h"
#include "core/types.h"
#include "sched/batch.h"
#include "sched/config.h"
#include "sched/policy.h"
#include "sched/prefix_groups.h"
#include "sched/sequence.h"
#include "sched/trace.h"

namespace srt {

// News of sequences, in order; one entry each.
struct Events {
  std::vector<SeqId> seq_ids;
  std::vector<TokenId> tokens;         // -1: none
  std::vector<FinishReason> finish;    // != kNone: the sequence's last event
  std::vector<int32_t> cached_tokens;  // at a sequence's first event, else -1
  std::vector<int32_t> sample_idx;     // the token's place in the committed step, or -1
  std::vector<int64_t> queued_us;      // from add to admission, at the first event, else -1
};

struct SchedulerStats {
  int32_t num_running = 0;
  int32_t num_waiting = 0;
  int32_t num_in_flight = 0;    // steps
  int32_t num_total_pages = 0;  // that can be handed out
  int32_t num_free_pages = 0;
  int32_t num_cached_pages = 0;     // held by the prefix tree
  int32_t num_evictable_pages = 0;  // of these, locked by nobody
  int32_t num_used_pages = 0;       // owned by sequences, or cached and locked
  int32_t page_size = 1;
  int64_t num_evicted_pages = 0;  // since the start, as everything below
  int64_t num_retracted = 0;
  int64_t num_drafts = 0;                // run
  int64_t num_right_drafts = 0;          // of these, sampled too
  int64_t num_prompt_tokens = 0;         // of admitted sequences
  int64_t num_prompt_cached_tokens = 0;  // of these, found in the cache
  double new_token_ratio = 0.0;
};

class Scheduler {
 public:
  static constexpr size_t kMaxInFlight = 2;  // steps

  explicit Scheduler(const SchedulerConfig& config);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // What time it is, for the traces of what happens until the next call.
  void tell_time(int64_t now_us) { now_us_ = now_us; }

  // Throws InvalidArgument if the sequence can never run: a prompt that leaves no room in the
  // context or in the KV pool, a malformed field, an id that is alive. The output is clipped to
  // what context and pool leave, so a sequence that is alone always fits.
  void add(NewSequence seq);

  // Ends a sequence wherever it is; its pages are free at once. Unknown ids are fine.
  void abort(SeqId id);

  // Says what probably follows the newest token of a sync sequence. As far as there is room, its
  // next decode runs these tokens too, each as a decode of its own, and samples after each. A
  // draft's sample counts if all before it counted and the last of them is the draft, so what
  // comes out is what one token a step would give. Replaces earlier drafts. Throws InvalidArgument
  // if a step of the sequence is in flight or there are more than msg::kMaxDrafts. Unknown ids are
  // fine.
  void draft(SeqId id, std::vector<TokenId> tokens);

  // Decides the next step and writes it to `message` (config.message_words() words). nullopt:
  // nothing can run now; commit a step in flight or add a sequence. Throws InvalidArgument when
  // two steps are in flight. O(step's sequences + tokens + page updates), never O(waiting).
  std::optional<StepPlan> schedule(std::span<int32_t> message);

  // Brings the sampled tokens of the oldest step in flight, in sample order. O(samples).
  void commit(StepId step, std::span<const TokenId> tokens);

  Events drain_events();

  // Empties the prefix tree. False, and nothing happens, while sequences wait or run; a step in
  // flight whose sequences all ended is no obstacle.
  bool flush();

  SchedulerStats stats() const;
  // Of a sequence that lives, or that ended not too long ago.
  std::optional<Trace> trace(SeqId id) const;
  int32_t row_of(SeqId id) const;  // -1: waits or is unknown
  const SchedulerConfig& config() const { return config_; }
  void check_invariants() const;  // O(everything); throws InternalError

  // For tests: the pages a sequence reads through, in order.
  std::span<const PageId> pages_of(SeqId id) const;

 private:
  struct Expected {  // what a step in flight will bring
    Sequence* seq;
    uint64_t serial;        // no longer seq's: it ended meanwhile
    int32_t draft_at = -1;  // position of the draft that the row ran; -1: it ran no draft
    TokenId draft = -1;
  };
  struct InFlight {
    StepId step = 0;
    std::vector<Expected> samples;
    std::vector<Expected> prompts_done;  // max_new_tokens 0: end with this step
  };

  // scheduler.cc
  Sequence& new_sequence();
  void release(Sequence& seq);
  void finish(Sequence& seq, FinishReason reason, TokenId token, int32_t sample_idx);
  void emit(Sequence& seq, FinishReason reason, TokenId token, int32_t sample_idx);
  void commit_sample(const Expected& expected, TokenId token, int32_t sample_idx);
  void commit_token(Sequence& seq, TokenId token, int32_t sample_idx);
  void launch(StepId step);
  void sweep_running();
  void rest_if_idle();
  void check_sequences() const;

  // planner.cc
  void plan_decodes();
  bool has_backlog() const;
  void plan_extends();
  void plan_decode(Sequence& seq, int32_t num_drafts);
  void plan_with_drafts();
  int32_t num_spare_rows() const;
  int32_t num_drafts_to_run(const Sequence& seq, int32_t num_rows, int32_t num_pages) const;
  bool continue_extends(int32_t& budget);
  void admit(int32_t& budget);
  bool try_admit(Sequence& seq, int32_t budget);
  bool fits(const Sequence& seq) const;
  int32_t plan_chunk(Sequence& seq, int32_t budget, bool is_new);
  int32_t chunk_len(const Sequence& seq, int32_t budget) const;
  void find_ready_decodes();
  void retract_some();
  void retract(Sequence& seq);
  bool needs_page(const Sequence& seq) const;
  int32_t pages_wanted_soon(const Sequence& seq) const;
  int32_t num_available() const;
  void take_pages(Sequence& seq, int32_t num_tokens);
  void publish(Sequence& seq);
  int64_t reserved_tokens(const Sequence& seq) const;
  void raise_ratio();

  SchedulerConfig config_;
  PagePool pool_;
  RadixTree tree_;
  WaitingQueue waiting_;
  std::vector<Sequence*> running_;  // in order of admission
  std::vector<int32_t> free_rows_;
  std::unordered_map<SeqId, Sequence*> by_id_;
  std::vector<std::unique_ptr<Sequence>> homes_;  // every Sequence ever needed at once
  std::vector<Sequence*> free_homes_;
  std::array<InFlight, kMaxInFlight> in_flight_;  // a ring
  size_t oldest_in_flight_ = 0;
  size_t num_in_flight_ = 0;
  Batch batch_;
  PrefixGrouper grouper_;
  Events events_;
  TraceLog traces_;
  int64_t now_us_ = 0;
  StepId next_step_ = 1;
  uint64_t next_serial_ = 1;
  double new_token_ratio_;
  int64_t reserved_ = 0;            // tokens that running sequences are expected to need
  int32_t cached_updates_ = 0;      // page-table entries copied for prefixes in this step
  StepPlan round_;                  // counts of the step that is being planned
  std::vector<Sequence*> ready_;    // scratch: decodes of this step
  bool ready_has_drafts_ = false;   // scratch
  std::vector<Sequence*> victims_;  // scratch
  SchedulerStats totals_;           // the counters since the start
};

}  // namespace srt
