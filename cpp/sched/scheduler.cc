#include "sched/scheduler.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/step_message.h"

namespace srt {
namespace {

const SchedulerConfig& validated(const SchedulerConfig& config) {
  config.validate();
  return config;
}

void check_request(const NewSequence& seq, const SchedulerConfig& config) {
  expect(!seq.tokens.empty(), "the prompt is empty");
  expect(seq.max_new_tokens >= 0, "max_new_tokens must not be negative");
  expect(seq.min_new_tokens >= 0, "min_new_tokens must not be negative");
  const auto prompt_len = static_cast<int64_t>(seq.tokens.size());
  const int64_t least_output = seq.max_new_tokens > 0 ? 1 : 0;
  if (prompt_len + least_output > config.max_seq_len) {
    throw InvalidArgument("prompt has " + std::to_string(prompt_len) +
                          " tokens, the context window holds " +
                          std::to_string(config.max_seq_len) +
                          (least_output > 0 ? " with at least one of output" : ""));
  }
  if (config.whole_prompts && prompt_len > config.max_prefill_tokens) {
    throw InvalidArgument("prompt has " + std::to_string(prompt_len) +
                          " tokens, a step that runs it whole holds " +
                          std::to_string(config.max_prefill_tokens));
  }
  const int64_t pool_tokens = int64_t{config.num_pages - 1} * config.page_size;
  const int64_t needed = prompt_len + least_output;
  if (needed > pool_tokens) {
    throw InvalidArgument("prompt and output need at least " + std::to_string(needed) +
                          " KV slots, the KV pool holds " + std::to_string(pool_tokens));
  }
  const bool all_valid =
      std::all_of(seq.tokens.begin(), seq.tokens.end(), [](TokenId token) { return token >= 0; });
  expect(all_valid, "the prompt holds a negative token id");
  const SamplingParams& p = seq.sampling;
  const size_t extra = p.stop_token_ids.size() + 2 * p.logit_bias.size();
  if (extra > static_cast<size_t>(config.max_extra_words)) {
    throw InvalidArgument("stop_token_ids and logit_bias take " + std::to_string(extra) +
                          " words, a sequence may use " + std::to_string(config.max_extra_words));
  }
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config)
    : config_(validated(config)),
      pool_(config.num_pages),
      tree_(pool_, config.page_size),
      waiting_(config.policy, config.random_seed),
      batch_(config_),
      new_token_ratio_(config.init_new_token_ratio) {
  for (int32_t row = config.max_running - 1; row >= 0; --row) free_rows_.push_back(row);
}

// ---- life and death ----

Sequence& Scheduler::new_sequence() {
  if (free_homes_.empty()) {
    homes_.push_back(std::make_unique<Sequence>());
    return *homes_.back();
  }
  Sequence* home = free_homes_.back();
  free_homes_.pop_back();
  return *home;
}

void Scheduler::add(NewSequence seq) {
  check_request(seq, config_);
  if (by_id_.contains(seq.id)) {
    throw InvalidArgument("sequence id " + std::to_string(seq.id) + " is already in use");
  }
  const auto prompt_len = static_cast<int64_t>(seq.tokens.size());
  // The last token is never read back, so it needs no KV slot.
  const int64_t pool_tokens = int64_t{pool_.num_usable()} * config_.page_size + 1;
  const int64_t room = std::min<int64_t>(config_.max_seq_len, pool_tokens) - prompt_len;
  Sequence& home = new_sequence();
  home.start(std::move(seq), next_serial_++);
  home.max_new_tokens = static_cast<int32_t>(std::min<int64_t>(home.max_new_tokens, room));
  home.trace = {.id = home.request.id, .added_us = now_us_, .num_prompt_tokens = home.prompt_len};
  by_id_.emplace(home.request.id, &home);
  waiting_.push(home);
}

void Scheduler::abort(SeqId id) {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return;
  finish(*found->second, FinishReason::kAbort, -1, -1);
  sweep_running();
  rest_if_idle();
  if (config_.self_check) check_invariants();
}

void Scheduler::draft(SeqId id, std::vector<TokenId> tokens) {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return;
  Sequence& seq = *found->second;
  expect(seq.request.sync, "drafts are for sequences that were added with sync");
  expect(seq.num_pending == 0, "a step of the sequence is in flight");
  const bool all_valid =
      std::all_of(tokens.begin(), tokens.end(), [](TokenId token) { return token >= 0; });
  expect(all_valid, "drafts hold a negative token id");
  expect(std::ssize(tokens) <= msg::kMaxDrafts, "got " + std::to_string(tokens.size()) +
                                                    " drafts; at most " +
                                                    std::to_string(msg::kMaxDrafts) + " fit");
  seq.drafts = std::move(tokens);
}

void Scheduler::emit(Sequence& seq, FinishReason reason, TokenId token, int32_t sample_idx) {
  events_.seq_ids.push_back(seq.request.id);
  events_.tokens.push_back(token);
  events_.finish.push_back(reason);
  events_.cached_tokens.push_back(seq.is_announced ? -1 : seq.cached_len);
  events_.sample_idx.push_back(sample_idx);
  const bool was_admitted = seq.trace.admitted_us >= 0;
  events_.queued_us.push_back(
      seq.is_announced || !was_admitted ? -1 : seq.trace.admitted_us - seq.trace.added_us);
  seq.is_announced = true;
}

void Scheduler::finish(Sequence& seq, FinishReason reason, TokenId token, int32_t sample_idx) {
  emit(seq, reason, token, sample_idx);
  seq.trace.ended_us = now_us_;
  seq.trace.finish = reason;
  seq.trace.num_output_tokens = seq.num_output();
  traces_.push(seq.trace);
  if (seq.phase == Phase::kWaiting) {
    waiting_.remove(seq);
  } else {
    release(seq);
  }
  by_id_.erase(seq.request.id);
  seq.reset();
  free_homes_.push_back(&seq);
}

// Gives row and pages back. Whole pages of known tokens stay findable in the tree: what a step in
// flight still computes for them is there before any later step reads it.
void Scheduler::release(Sequence& seq) {
  size_t num_kept = seq.lock.num_pages();
  if (config_.enable_radix) {
    const int32_t cacheable = std::min(seq.kv_len, seq.num_known()) / config_.page_size;
    num_kept = std::max(num_kept, static_cast<size_t>(cacheable));
    tree_.insert(seq.request.ns, seq.lock, seq.tokens, std::span(seq.pages).first(num_kept));
  }
  for (size_t i = num_kept; i < seq.pages.size(); ++i) pool_.give_back(seq.pages[i]);
  seq.pages.clear();
  seq.lock.release();
  seq.kv_len = 0;
  seq.num_table_pages = 0;
  free_rows_.push_back(seq.row);
  seq.row = -1;
}

void Scheduler::sweep_running() {
  std::erase_if(running_, [](const Sequence* seq) { return seq->row < 0; });
}

void Scheduler::rest_if_idle() {
  if (running_.empty() && waiting_.empty()) new_token_ratio_ = config_.init_new_token_ratio;
}

// ---- steps ----

std::optional<StepPlan> Scheduler::schedule(std::span<int32_t> message) {
  expect(num_in_flight_ < kMaxInFlight, "two steps are in flight: commit one first");
  if (message.size() < config_.message_words()) {
    throw InvalidArgument("message holds " + std::to_string(message.size()) + " words, needs " +
                          std::to_string(config_.message_words()));
  }
  batch_.clear();
  round_ = StepPlan{};
  cached_updates_ = 0;
  if (config_.enable_mixed) {
    plan_decodes();
    plan_extends();
  } else {
    plan_extends();
    if (batch_.empty()) plan_decodes();
  }
  if (batch_.empty()) return std::nullopt;
  StepPlan plan = std::move(round_);
  batch_.write(next_step_, message, plan);
  if (config_.shared_prefix_pages > 0 && plan.num_decode > 1) {
    grouper_.group(tree_, batch_.items(), config_.shared_prefix_pages, plan);
  }
  launch(next_step_++);
  if (config_.self_check) check_invariants();
  return plan;
}

void Scheduler::launch(StepId step) {
  InFlight& flight = in_flight_[(oldest_in_flight_ + num_in_flight_++) % kMaxInFlight];
  flight.step = step;
  flight.samples.clear();
  flight.prompts_done.clear();
  for (const BatchItem& item : batch_.items()) {
    Expected expected{item.seq, item.seq->serial};
    if (item.is_draft) {
      expected.draft_at = item.start;
      expected.draft = item.seq->token_at(item.start);
    } else {
      item.seq->trace.note_step(static_cast<int32_t>(batch_.items().size()));
    }
    if (item.output_idx >= 0) {
      flight.samples.push_back(expected);
    } else if (item.seq->phase == Phase::kDecode) {
      flight.prompts_done.push_back(expected);
    }
  }
}

void Scheduler::commit(StepId step, std::span<const TokenId> tokens) {
  expect(num_in_flight_ > 0, "no step is in flight");
  InFlight& flight = in_flight_[oldest_in_flight_];
  if (flight.step != step) {
    throw InvalidArgument("step " + std::to_string(step) + " is committed before step " +
                          std::to_string(flight.step));
  }
  if (tokens.size() != flight.samples.size()) {
    throw InvalidArgument("step " + std::to_string(step) + " has " +
                          std::to_string(flight.samples.size()) + " samples, commit brings " +
                          std::to_string(tokens.size()));
  }
  oldest_in_flight_ = (oldest_in_flight_ + 1) % kMaxInFlight;
  --num_in_flight_;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const Expected& expected = flight.samples[i];
    if (expected.seq->serial != expected.serial) continue;  // ended while in flight
    commit_sample(expected, tokens[i], static_cast<int32_t>(i));
  }
  for (const Expected& expected : flight.prompts_done) {
    if (expected.seq->serial != expected.serial) continue;
    finish(*expected.seq, FinishReason::kLength, -1, -1);
  }
  sweep_running();
  rest_if_idle();
  if (config_.self_check) check_invariants();
}

void Scheduler::commit_sample(const Expected& expected, TokenId token, int32_t sample_idx) {
  Sequence& seq = *expected.seq;
  const bool is_draft = expected.draft_at >= 0;
  const bool is_wrong =
      is_draft && (seq.num_known() - 1 != expected.draft_at || seq.tokens.back() != expected.draft);
  if (is_wrong) {
    --seq.num_pending;
  } else {
    if (is_draft) ++totals_.num_right_drafts;
    // The KV behind what is known now is a draft's.
    if (seq.has_drafts()) seq.kv_len = seq.num_known();
    commit_token(seq, token, sample_idx);
    if (seq.serial != expected.serial) return;  // that was its last
  }
  if (seq.has_drafts() && seq.num_pending == 0) seq.drafts.clear();
}

void Scheduler::commit_token(Sequence& seq, TokenId token, int32_t sample_idx) {
  const std::vector<TokenId>& stops = seq.request.sampling.stop_token_ids;
  const bool may_stop = seq.num_output() >= seq.request.min_new_tokens;
  seq.tokens.push_back(token);
  --seq.num_pending;
  if (seq.trace.first_token_us < 0) seq.trace.first_token_us = now_us_;
  if (may_stop && std::find(stops.begin(), stops.end(), token) != stops.end()) {
    finish(seq, FinishReason::kStop, token, sample_idx);
  } else if (seq.num_output() >= seq.max_new_tokens) {
    finish(seq, FinishReason::kLength, token, sample_idx);
  } else {
    emit(seq, FinishReason::kNone, token, sample_idx);
  }
}

Events Scheduler::drain_events() { return std::exchange(events_, Events{}); }

bool Scheduler::flush() {
  if (!by_id_.empty()) return false;
  tree_.evict(tree_.num_cached_pages());
  return true;
}

// ---- looking in ----

std::optional<Trace> Scheduler::trace(SeqId id) const {
  const auto found = by_id_.find(id);
  if (found != by_id_.end()) {
    Trace trace = found->second->trace;
    trace.num_output_tokens = found->second->num_output();
    return trace;
  }
  const Trace* ended = traces_.find(id);
  return ended == nullptr ? std::nullopt : std::optional(*ended);
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats = totals_;
  stats.num_running = static_cast<int32_t>(running_.size());
  stats.num_waiting = static_cast<int32_t>(waiting_.size());
  stats.num_in_flight = static_cast<int32_t>(num_in_flight_);
  stats.num_total_pages = pool_.num_usable();
  stats.num_free_pages = pool_.num_free();
  stats.num_cached_pages = pool_.num_cached();
  stats.num_evictable_pages = static_cast<int32_t>(tree_.num_evictable_pages());
  stats.num_used_pages = stats.num_total_pages - num_available();
  stats.page_size = config_.page_size;
  stats.new_token_ratio = new_token_ratio_;
  return stats;
}

int32_t Scheduler::row_of(SeqId id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? -1 : found->second->row;
}

std::span<const PageId> Scheduler::pages_of(SeqId id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? std::span<const PageId>{} : found->second->pages;
}

void Scheduler::check_invariants() const {
  tree_.check_invariants();
  check_sequences();
  SRT_CHECK(by_id_.size() == running_.size() + waiting_.size(), "everybody waits or runs");
  SRT_CHECK(running_.size() + free_rows_.size() == static_cast<size_t>(config_.max_running),
            "rows are free or taken");
}

void Scheduler::check_sequences() const {
  std::vector<bool> row_taken(static_cast<size_t>(config_.max_running), false);
  std::vector<bool> page_owned(static_cast<size_t>(config_.num_pages), false);
  int32_t num_owned = 0;
  for (const Sequence* seq : running_) {
    const auto row = static_cast<size_t>(seq->row);
    SRT_CHECK(seq->serial != 0 && !row_taken.at(row), "a row has one living sequence");
    row_taken[row] = true;
    SRT_CHECK(seq->num_pages() >= config_.pages_for(seq->kv_len), "every KV has a page");
    SRT_CHECK(seq->kv_len <= seq->num_known() + seq->num_pending, "KV stops at the last token");
    for (size_t i = 0; i < seq->pages.size(); ++i) {
      const PageId page = seq->pages[i];
      if (i < seq->lock.num_pages()) {
        SRT_CHECK(pool_.use(page) == PageUse::kCached, "locked pages are the tree's");
        continue;
      }
      SRT_CHECK(pool_.use(page) == PageUse::kOwned, "pages behind the lock are owned");
      SRT_CHECK(!page_owned[static_cast<size_t>(page)], "a page has one owner");
      page_owned[static_cast<size_t>(page)] = true;
      ++num_owned;
    }
  }
  SRT_CHECK(num_owned == pool_.num_owned(), "every page is free, cached or owned");
  waiting_.for_each([](const Sequence& seq) {
    SRT_CHECK(seq.row < 0 && seq.pages.empty() && seq.lock.num_pages() == 0,
              "who waits holds nothing");
  });
}

}  // namespace srt
