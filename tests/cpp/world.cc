#include "world.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace srt {

void World::add(NewSequence seq) {
  auto life = std::make_shared<Life>();
  life->request = seq;
  life->tokens = seq.tokens;
  life->num_prompt = seq.tokens.size();
  const int64_t pool = int64_t{config_.num_pages - 1} * config_.page_size + 1;
  const int64_t room =
      std::min<int64_t>(config_.max_seq_len, pool) - static_cast<int64_t>(life->num_prompt);
  const SeqId id = seq.id;
  const int64_t wish = seq.max_new_tokens;
  scheduler.add(std::move(seq));  // may throw; then nothing was added
  life->max_output = static_cast<size_t>(std::min(wish, room));
  lives_[id] = std::move(life);
  ++num_alive_;
}

void World::abort(SeqId id) {
  const bool was_alive = is_alive(id);
  scheduler.abort(id);
  if (was_alive) owe(lives_.at(id), FinishReason::kAbort, -1, -1);
  expect_events(scheduler.drain_events());
}

namespace {

// The name of a prefix that is longer by one token.
uint64_t longer(uint64_t name, TokenId token) {
  name = (name ^ static_cast<uint64_t>(token + 1)) * 0x9E3779B97F4A7C15ULL;
  return name ^ (name >> 31);
}

}  // namespace

bool World::is_in_flight(SeqId id) {
  const auto is_of = [&](const Sampled& sampled) { return sampled.life == lives_.at(id); };
  return std::any_of(in_flight_.begin(), in_flight_.end(), [&](const InFlight& flight) {
    return std::any_of(flight.samples.begin(), flight.samples.end(), is_of);
  });
}

uint64_t World::content(Life& life, size_t num_tokens) {
  if (life.names.empty()) life.names.push_back(std::hash<std::string>{}(life.request.ns) | 1);
  while (life.names.size() <= num_tokens) {
    life.names.push_back(longer(life.names.back(), life.tokens[life.names.size() - 1]));
  }
  return life.names[num_tokens];
}

// A decode behind another of its sequence runs a draft.
bool World::is_draft(const StepReader& step, size_t seq) const {
  return seq > 0 && step.seqs[seq].row == step.seqs[seq - 1].row;
}

// As `content`, seen from a sequence of the step: behind its known tokens stand the drafts that it
// runs. Decodes have one token each, so token and sequence have the same index there.
uint64_t World::content_of(const StepReader& step, size_t seq, size_t num_tokens) const {
  Life& life = *step_lives_[seq];
  if (num_tokens <= life.tokens.size()) return content(life, num_tokens);
  while (static_cast<size_t>(step.tokens[seq].position) + 1 > num_tokens) --seq;
  return longer(content_of(step, seq - 1, num_tokens - 1), step.tokens[seq].id);
}

bool World::schedule() {
  std::optional<StepPlan> next = scheduler.schedule(message_);
  expect_events(scheduler.drain_events());
  if (!next) return false;
  plan = std::move(*next);
  InFlight flight{plan.step, {}, {}};
  run_on_device(flight);
  in_flight_.push_back(std::move(flight));
  return true;
}

// The device runs steps in the order in which they were planned, so running each at once is the
// same as running it later.
void World::run_on_device(InFlight& flight) {
  const StepReader step(message_);
  std::map<int32_t, std::shared_ptr<Life>> by_row;
  for (const auto& [id, life] : lives_) {
    const int32_t row = scheduler.row_of(id);
    if (row >= 0) by_row[row] = life;
  }
  step_lives_.clear();
  for (const StepReader::Seq& seq : step.seqs) step_lives_.push_back(by_row.at(seq.row));
  check_plan(step);
  for (const StepReader::Update& update : step.updates) {
    page_table_.at(static_cast<size_t>(update.row)).at(static_cast<size_t>(update.page_idx)) =
        update.page;
  }
  check_prefix_groups(step);
  write_kv(step);
  read_kv(step);
  check_logits(step);
  sample(step, flight);
}

void World::check_plan(const StepReader& step) const {
  ASSERT_LE(plan.num_seqs, config_.max_running);
  ASSERT_LE(plan.num_tokens, config_.max_tokens());
  ASSERT_LE(plan.num_extend_tokens, config_.max_prefill_tokens);
  ASSERT_EQ(plan.num_bytes, 4 * int64_t{step.words[msg::kTotalWords]});
  ASSERT_TRUE(config_.max_step_logits == 0 || plan.num_logits <= config_.max_step_logits);
  ASSERT_TRUE(config_.enable_mixed || plan.num_decode == 0 || plan.is_decode_only());
  int32_t q_start = 0;
  std::set<int32_t> rows;
  for (size_t i = 0; i < step.seqs.size(); ++i) {
    const StepReader::Seq& seq = step.seqs[i];
    const Life& life = *step_lives_[i];
    if (is_draft(step, i)) {
      ASSERT_TRUE(life.request.sync);
      ASSERT_LT(static_cast<int32_t>(i), step.num_decode());
      ASSERT_EQ(seq.seq_len, step.seqs[i - 1].seq_len + 1);
    } else {
      ASSERT_TRUE(rows.insert(seq.row).second) << "a row appears twice";
    }
    ASSERT_EQ(seq.q_start, q_start);
    ASSERT_EQ(seq.prompt_len, static_cast<int32_t>(life.num_prompt));
    ASSERT_TRUE(life.was_planned || (seq.flags & msg::kSeqIsNew) != 0);
    if (static_cast<int32_t>(i) < step.num_decode()) {
      ASSERT_EQ(seq.q_len, 1);
      ASSERT_GE(seq.sample_idx, 0);
    }
    q_start += seq.q_len;
  }
  ASSERT_EQ(q_start, plan.num_tokens);
}

// Members of a group stand on the same pages.
void World::check_prefix_groups(const StepReader& step) const {
  std::map<int32_t, std::vector<PageId>> shared;
  std::map<int32_t, int> num_members;
  for (size_t i = 0; i < plan.prefix_groups.size(); ++i) {
    const int32_t group = plan.prefix_groups[i];
    if (group < 0) continue;
    const std::vector<PageId>& table = page_table_[static_cast<size_t>(step.seqs[i].row)];
    ASSERT_GE(plan.prefix_pages[i], config_.shared_prefix_pages);
    std::vector<PageId> pages(table.begin(), table.begin() + plan.prefix_pages[i]);
    ASSERT_EQ(shared.emplace(group, pages).first->second, pages);
    ++num_members[group];
  }
  for (const auto& [group, count] : num_members) ASSERT_GE(count, 2) << "group " << group;
}

void World::write_kv(const StepReader& step) {
  const int32_t page_size = config_.page_size;
  std::set<int32_t> slots;
  for (const StepReader::Token& token : step.tokens) {
    const auto seq = static_cast<size_t>(token.seq);
    const int32_t row = step.seqs[seq].row;
    Life& life = *step_lives_[seq];
    const auto position = static_cast<size_t>(token.position);
    if (is_draft(step, seq)) {
      ASSERT_GE(token.id, 0);
    } else {
      ASSERT_LT(position, life.tokens.size());
      const TokenId id = token.id >= 0 ? token.id : last_tokens_[static_cast<size_t>(row)];
      ASSERT_EQ(id, life.tokens[position]);
    }
    const PageId page =
        page_table_[static_cast<size_t>(row)][static_cast<size_t>(token.position / page_size)];
    ASSERT_GT(page, 0);
    ASSERT_EQ(token.slot, page * page_size + token.position % page_size);
    ASSERT_TRUE(slots.insert(token.slot).second) << "two tokens of a step write one slot";
    memory_[static_cast<size_t>(token.slot)] = content_of(step, seq, position + 1);
  }
}

void World::read_kv(const StepReader& step) const {
  const auto page_size = static_cast<size_t>(config_.page_size);
  for (size_t i = 0; i < step.seqs.size(); ++i) {
    const StepReader::Seq& seq = step.seqs[i];
    Life& life = *step_lives_[i];
    const std::vector<PageId>& table = page_table_[static_cast<size_t>(seq.row)];
    for (size_t position = 0; position < static_cast<size_t>(seq.seq_len); ++position) {
      const auto page = static_cast<size_t>(table[position / page_size]);
      ASSERT_EQ(memory_[page * page_size + position % page_size], content_of(step, i, position + 1))
          << "sequence " << life.request.id << " reads foreign KV at " << position;
    }
  }
}

void World::check_logits(const StepReader& step) {
  ASSERT_EQ(plan.logit_seq_ids.size(), step.logits.size());
  for (size_t i = 0; i < step.logits.size(); ++i) {
    const StepReader::Logit& row = step.logits[i];
    Life& life = *step_lives_[static_cast<size_t>(row.seq)];
    const StepReader::Token& token = step.tokens.at(static_cast<size_t>(row.token));
    ASSERT_EQ(token.seq, row.seq);
    ASSERT_EQ(plan.logit_seq_ids[i], life.request.id);
    ASSERT_EQ(plan.logit_positions[i], token.position + 1);
    if (i < plan.sample_seq_ids.size()) {
      ASSERT_EQ(row.target, -1);
      ASSERT_EQ(plan.sample_seq_ids[i], life.request.id);
      continue;
    }
    ASSERT_EQ(row.target, life.tokens.at(static_cast<size_t>(token.position + 1)));
    ASSERT_TRUE(life.scored.insert(token.position + 1).second) << "a prompt token is scored twice";
  }
}

void World::sample(const StepReader& step, InFlight& flight) {
  for (size_t i = 0; i < step.seqs.size(); ++i) {
    const StepReader::Seq& seq = step.seqs[i];
    const std::shared_ptr<Life>& life = step_lives_[i];
    life->was_planned = true;
    if (seq.sample_idx < 0) {
      const bool is_done = seq.seq_len == static_cast<int32_t>(life->tokens.size());
      if (is_done) flight.prompts_done.push_back(life);
      continue;
    }
    ASSERT_EQ(seq.sample_idx, static_cast<int32_t>(flight.samples.size()));
    const auto seq_len = static_cast<size_t>(seq.seq_len);
    const bool counts = !is_draft(step, i) || (life->tokens.size() == seq_len &&
                                               life->tokens.back() == step.tokens[i].id);
    ASSERT_TRUE(!counts || seq_len == life->tokens.size());
    const auto output_idx = static_cast<int32_t>(seq_len - life->num_prompt);
    const int32_t* record = step.sampling(seq.sample_idx);
    ASSERT_EQ(record[msg::kSampleSeq], static_cast<int32_t>(i));
    ASSERT_EQ(record[msg::kSamplePosition], output_idx) << "the random stream skips or repeats";
    ASSERT_LT(output_idx, static_cast<int32_t>(life->max_output)) << "a row is wasted knowingly";
    const TokenId token = sampler(*life);
    // Which of its rows writes last is not said.
    last_tokens_[static_cast<size_t>(seq.row)] = is_draft(step, i) ? -1 : token;
    if (counts) life->tokens.push_back(token);
    flight.samples.push_back({life, token, counts});
  }
}

void World::commit() {
  const InFlight flight = std::move(in_flight_.front());
  in_flight_.pop_front();
  std::vector<TokenId> tokens;
  for (size_t i = 0; i < flight.samples.size(); ++i) {
    const auto& [life, token, counts] = flight.samples[i];
    tokens.push_back(token);
    if (life->finish || !counts) continue;  // a wasted row, or aborted meanwhile
    const std::vector<TokenId>& stops = life->request.sampling.stop_token_ids;
    const bool may_stop = life->emitted.size() >= static_cast<size_t>(life->request.min_new_tokens);
    FinishReason reason = FinishReason::kNone;
    if (may_stop && std::count(stops.begin(), stops.end(), token) > 0) {
      reason = FinishReason::kStop;
    } else if (life->emitted.size() + 1 == life->max_output) {
      reason = FinishReason::kLength;
    }
    owe(life, reason, token, static_cast<int32_t>(i));
  }
  for (const auto& life : flight.prompts_done) {
    if (!life->finish) owe(life, FinishReason::kLength, -1, -1);
  }
  scheduler.commit(flight.step, tokens);
  expect_events(scheduler.drain_events());
}

void World::owe(const std::shared_ptr<Life>& life, FinishReason reason, TokenId token,
                int32_t idx) {
  owed_.push_back({life->request.id, token, reason, idx});
  if (token >= 0) life->emitted.push_back(token);
  if (reason == FinishReason::kNone) return;
  life->finish = reason;
  --num_alive_;
  const int32_t start = life->request.sampling.logprob_start;
  if (reason == FinishReason::kAbort || start < 0) return;
  const int32_t prompt_len = static_cast<int32_t>(life->num_prompt);
  const auto wanted = static_cast<size_t>(std::max(0, prompt_len - std::max(start, 1)));
  EXPECT_EQ(life->scored.size(), wanted) << "prompt tokens were left unscored";
}

void World::expect_events(const Events& events) {
  ASSERT_EQ(events.seq_ids.size(), owed_.size());
  for (size_t i = 0; i < owed_.size(); ++i) {
    ASSERT_EQ(events.seq_ids[i], owed_[i].id);
    ASSERT_EQ(events.tokens[i], owed_[i].token);
    ASSERT_EQ(events.finish[i], owed_[i].finish);
    ASSERT_EQ(events.sample_idx[i], owed_[i].sample_idx);
    Life& life = *lives_.at(owed_[i].id);
    ASSERT_EQ(events.cached_tokens[i] >= 0, life.cached_tokens < 0) << "told once, at first";
    if (events.cached_tokens[i] >= 0) life.cached_tokens = events.cached_tokens[i];
  }
  owed_.clear();
}

void World::run_to_end() {
  while (num_alive_ > 0 || !in_flight_.empty()) {
    const bool planned = in_flight_.size() < Scheduler::kMaxInFlight && schedule();
    ASSERT_TRUE(planned || !in_flight_.empty()) << num_alive_ << " sequences are stuck";
    commit();
    if (testing::Test::HasFatalFailure()) return;
  }
}

void World::check_drained() {
  ASSERT_TRUE(scheduler.flush());
  scheduler.check_invariants();
  ASSERT_EQ(scheduler.stats().num_free_pages, scheduler.stats().num_total_pages);
}

int32_t World::q_len(SeqId id) const {
  const StepReader reader(message_);
  for (size_t i = 0; i < reader.seqs.size(); ++i) {
    if (step_lives_[i]->request.id == id) return reader.seqs[i].q_len;
  }
  return 0;
}

}  // namespace srt
