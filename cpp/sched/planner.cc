// The half of Scheduler that decides a step: decodes, extends, admission, retraction.
#include <algorithm>

#include "core/error.h"
#include "sched/scheduler.h"

namespace srt {
namespace {

// Retraction makes room for so many tokens of everyone who stays, so that it stays rare.
constexpr int32_t kRetractHeadroom = 20;

}  // namespace

int32_t Scheduler::num_available() const {
  return pool_.num_free() + static_cast<int32_t>(tree_.num_evictable_pages());
}

// Pages for the first `num_tokens` tokens; the caller knows that they are available.
void Scheduler::take_pages(Sequence& seq, int32_t num_tokens) {
  const int32_t missing = config_.pages_for(num_tokens) - seq.num_pages();
  if (missing > pool_.num_free()) {
    totals_.num_evicted_pages +=
        static_cast<int64_t>(tree_.evict(static_cast<size_t>(missing - pool_.num_free())));
  }
  for (int32_t i = 0; i < missing; ++i) seq.pages.push_back(pool_.take());
}

// Whole pages of known tokens become findable; see the head of scheduler.h for why already now.
void Scheduler::publish(Sequence& seq) {
  if (!config_.enable_radix) return;
  const auto num_whole =
      static_cast<size_t>(std::min(seq.kv_len, seq.num_known()) / config_.page_size);
  tree_.publish(seq.request.ns, seq.lock, seq.tokens, std::span(seq.pages).first(num_whole));
}

// ---- decodes ----

bool Scheduler::needs_page(const Sequence& seq) const {
  return config_.pages_for(seq.kv_len + 1) > seq.num_pages();
}

void Scheduler::plan_decodes() {
  find_ready_decodes();
  if (ready_has_drafts_) {
    plan_with_drafts();
  } else {
    for (Sequence* seq : ready_) plan_decode(*seq, 0);
  }
  if (batch_.num_decode() > 0) {
    new_token_ratio_ =
        std::max(config_.min_new_token_ratio, new_token_ratio_ - config_.new_token_ratio_decay);
  }
}

void Scheduler::plan_with_drafts() {
  int32_t num_rows = num_spare_rows();
  auto num_needed = static_cast<int32_t>(std::count_if(
      ready_.begin(), ready_.end(), [this](const Sequence* seq) { return needs_page(*seq); }));
  for (Sequence* seq : ready_) {
    if (needs_page(*seq)) --num_needed;
    const int32_t num_drafts = num_drafts_to_run(*seq, num_rows, num_available() - num_needed);
    num_rows -= num_drafts;
    seq->drafts.resize(static_cast<size_t>(num_drafts));
    totals_.num_drafts += num_drafts;
    plan_decode(*seq, num_drafts);
  }
}

// Drafts take no row from who runs or waits, and leave half of a step to prompts.
int32_t Scheduler::num_spare_rows() const {
  const auto taken = static_cast<int32_t>(running_.size() + waiting_.size());
  const auto num_ready = static_cast<int32_t>(ready_.size());
  return std::min(config_.max_running - taken, config_.max_step_tokens / 2 - num_ready);
}

// At most `num_rows`, and in at most `num_pages` pages beside its own.
int32_t Scheduler::num_drafts_to_run(const Sequence& seq, int32_t num_rows,
                                     int32_t num_pages) const {
  if (seq.drafts.empty()) return 0;
  const int64_t room = int64_t{seq.num_pages() + num_pages} * config_.page_size - seq.kv_len - 1;
  const int64_t wish = std::min<int64_t>(std::ssize(seq.drafts), seq.num_left() - 1);
  return static_cast<int32_t>(std::max<int64_t>(0, std::min({wish, int64_t{num_rows}, room})));
}

void Scheduler::plan_decode(Sequence& seq, int32_t num_drafts) {
  take_pages(seq, seq.kv_len + 1 + num_drafts);
  for (int32_t i = 0; i <= num_drafts; ++i) {
    BatchItem item{.seq = &seq, .start = seq.kv_len, .q_len = 1};
    item.output_idx = seq.num_planned_output();
    item.first_update = seq.num_table_pages;
    item.is_decode = true;
    item.is_draft = i > 0;
    seq.num_table_pages = seq.num_pages();
    ++seq.kv_len;
    ++seq.num_pending;
    batch_.add(item);
  }
}

// Fills ready_ with the decodes that have a page to write to, retracting others where needed.
void Scheduler::find_ready_decodes() {
  ready_.clear();
  ready_has_drafts_ = false;
  int32_t num_missing = 0;
  for (Sequence* seq : running_) {
    if (!seq->wants_decode()) continue;
    ready_.push_back(seq);
    if (seq->has_drafts()) ready_has_drafts_ = true;
    if (needs_page(*seq)) ++num_missing;
  }
  int32_t available = num_available();
  if (num_missing <= available) return;
  retract_some();
  available = num_available();
  // What still does not fit waits for sequences whose last token is in flight.
  std::erase_if(ready_, [&](const Sequence* seq) {
    if (seq->phase == Phase::kWaiting) return true;
    return needs_page(*seq) && --available < 0;
  });
}

int32_t Scheduler::pages_wanted_soon(const Sequence& seq) const {
  const int32_t soon =
      std::max(seq.kv_len, seq.num_known()) + std::min(kRetractHeadroom, seq.num_left());
  return std::max(0, config_.pages_for(soon) - seq.num_pages());
}

void Scheduler::retract_some() {
  victims_.clear();
  int64_t wanted = 0;
  for (Sequence* seq : running_) {
    if (seq->phase == Phase::kDecode && seq->num_left() == 0) continue;  // ends by itself
    victims_.push_back(seq);
    wanted += pages_wanted_soon(*seq);
  }
  sort_victims(victims_);
  for (size_t i = 0; i + 1 < victims_.size() && wanted > num_available(); ++i) {
    wanted -= pages_wanted_soon(*victims_[i]);
    retract(*victims_[i]);
  }
  sweep_running();
  if (round_.num_retracted > 0) raise_ratio();
}

void Scheduler::retract(Sequence& seq) {
  release(seq);
  seq.drafts.clear();
  seq.phase = Phase::kWaiting;
  seq.was_retracted = true;
  seq.match_version = ~uint64_t{0};
  seq.trace.retracted_us = now_us_;
  ++seq.trace.num_retractions;
  waiting_.push(seq);
  ++round_.num_retracted;
  ++totals_.num_retracted;
}

void Scheduler::raise_ratio() {
  int64_t decoded = 0;
  int64_t expected = 0;
  for (const Sequence* seq : running_) {
    decoded += seq->num_planned_output() + kRetractHeadroom;
    expected += seq->max_new_tokens;
  }
  if (expected == 0) return;
  const double ratio = static_cast<double>(decoded) / static_cast<double>(expected);
  new_token_ratio_ = std::clamp(ratio, new_token_ratio_, std::max(1.0, new_token_ratio_));
}

// ---- extends ----

void Scheduler::plan_extends() {
  int32_t budget =
      std::min(config_.max_step_tokens - batch_.num_tokens(), config_.max_prefill_tokens);
  if (config_.max_mixed_tokens > 0 && batch_.num_decode() > 0 && !has_backlog())
    budget = std::min(budget, config_.max_mixed_tokens);
  // A step that retracted admits nobody: it would hand out the room it just made.
  if (continue_extends(budget) && round_.num_retracted == 0) admit(budget);
}

// Whether more prompt tokens wait than half a step takes: throughput then comes first. What the
// cache holds of waiting prompts counts, too. O(running + prompts until there are so many).
bool Scheduler::has_backlog() const {
  int64_t left = config_.max_prefill_tokens / 2;
  for (const Sequence* seq : running_)
    if (seq->phase == Phase::kExtend) left -= seq->num_known() - seq->kv_len;
  waiting_.for_each_until([&](const Sequence& seq) {
    left -= seq.num_known();
    return left < 0;
  });
  return left < 0;
}

// The next chunk of the prompt that earlier steps left unfinished; false: it still is.
bool Scheduler::continue_extends(int32_t& budget) {
  for (Sequence* seq : running_) {
    if (seq->phase != Phase::kExtend) continue;
    budget -= plan_chunk(*seq, budget, false);
    if (seq->phase == Phase::kExtend) return false;
  }
  return true;
}

int32_t Scheduler::chunk_len(const Sequence& seq, int32_t budget) const {
  const int64_t room = int64_t{seq.num_pages() + num_available()} * config_.page_size - seq.kv_len;
  int32_t n = static_cast<int32_t>(std::min<int64_t>({seq.num_known() - seq.kv_len, budget, room}));
  if (config_.max_step_logits > 0) {
    const int32_t rows = config_.max_step_logits - batch_.num_logits() - 1;  // one for its sample
    if (rows < 0) return 0;
    if (seq.wants_prompt_logprobs()) n = std::min(n, seq.next_logprob - 1 - seq.kv_len + rows);
  }
  if (config_.whole_prompts && n < seq.num_known() - seq.kv_len) return 0;
  return std::max(n, 0);
}

int32_t Scheduler::plan_chunk(Sequence& seq, int32_t budget, bool is_new) {
  const int32_t n = chunk_len(seq, budget);
  if (n == 0) return 0;
  BatchItem item{.seq = &seq, .start = seq.kv_len, .q_len = n};
  item.first_update = seq.num_table_pages;
  item.is_new = is_new;
  take_pages(seq, seq.kv_len + n);
  seq.num_table_pages = seq.num_pages();
  seq.kv_len += n;
  if (seq.wants_prompt_logprobs()) {
    item.logit_begin = seq.next_logprob;
    item.logit_end = std::max(seq.next_logprob, std::min(seq.kv_len + 1, seq.prompt_len));
    seq.next_logprob = item.logit_end;
  }
  if (seq.kv_len == seq.num_known()) {
    seq.phase = Phase::kDecode;
    if (seq.num_left() > 0) {
      item.output_idx = seq.num_planned_output();
      ++seq.num_pending;
    }
  }
  ++seq.trace.num_chunks;
  seq.trace.num_extend_tokens += n;
  batch_.add(item);
  publish(seq);
  return n;
}

// Tokens that a running sequence is expected to take beyond its pages' worth of KV.
int64_t Scheduler::reserved_tokens(const Sequence& seq) const {
  const int32_t output = std::min(seq.num_left(), config_.clip_max_new_tokens);
  const int32_t prompt = std::max(0, seq.num_known() - seq.kv_len);
  return prompt + static_cast<int64_t>(new_token_ratio_ * output);
}

void Scheduler::admit(int32_t& budget) {
  if (waiting_.empty() || free_rows_.empty() || budget <= 0) return;
  reserved_ = 0;
  for (const Sequence* seq : running_) reserved_ += reserved_tokens(*seq);
  waiting_.begin_round(config_.enable_radix ? &tree_ : nullptr);
  while (budget > 0 && !free_rows_.empty()) {
    Sequence* seq = waiting_.next();
    if (seq == nullptr) return;
    if (seq->num_pending > 0) continue;  // retracted; its newest token is still in flight
    if (!try_admit(*seq, budget)) return;
    budget -= plan_chunk(*seq, budget, true);
    if (seq->phase == Phase::kExtend) return;  // it takes what the next step has, too
    reserved_ += reserved_tokens(*seq);
  }
}

// Locks what the cache has and gives the sequence a row, if what it then needs fits.
bool Scheduler::try_admit(Sequence& seq, int32_t budget) {
  if (config_.enable_radix) {
    const auto max_pages = static_cast<size_t>(seq.max_cached_len() / config_.page_size);
    seq.lock = tree_.match(seq.request.ns, seq.tokens, max_pages, seq.pages);
  }
  seq.kv_len = seq.num_pages() * config_.page_size;
  if (!fits(seq) || chunk_len(seq, budget) == 0) {
    seq.lock.release();
    seq.pages.clear();
    seq.kv_len = 0;
    return false;
  }
  waiting_.remove(seq);
  running_.push_back(&seq);
  seq.phase = Phase::kExtend;
  if (seq.trace.admitted_us < 0) {
    seq.trace.admitted_us = now_us_;
    seq.trace.num_cached_tokens = seq.kv_len;
  } else if (seq.trace.retracted_us >= 0) {
    seq.trace.requeued_for_us += now_us_ - seq.trace.retracted_us;
    seq.trace.retracted_us = -1;
  }
  seq.row = free_rows_.back();
  free_rows_.pop_back();
  cached_updates_ += seq.num_pages();
  ++round_.num_new_seqs;
  round_.num_cached_tokens += seq.kv_len;
  if (!seq.was_retracted) {
    seq.cached_len = seq.kv_len;
    totals_.num_prompt_tokens += seq.prompt_len;
    totals_.num_prompt_cached_tokens += seq.kv_len;
  }
  return true;
}

bool Scheduler::fits(const Sequence& seq) const {
  if (cached_updates_ + seq.num_pages() > config_.max_cached_updates()) return false;
  const int32_t available = num_available();
  const int32_t missing = config_.pages_for(seq.num_known()) - seq.num_pages();
  if (missing > available) return false;
  if (running_.empty()) return true;  // alone, everything fits
  const int64_t wanted =
      int64_t{missing} * config_.page_size + std::min(seq.num_left(), config_.clip_max_new_tokens);
  return wanted + reserved_ <= int64_t{available} * config_.page_size;
}

}  // namespace srt
