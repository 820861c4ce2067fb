#include "sched/batch.h"

#include <algorithm>
#include <bit>
#include <string>

#include "core/error.h"
#include "core/step_message.h"

namespace srt {
namespace {

int32_t align(int32_t words) { return (words + msg::kAlignWords - 1) & ~(msg::kAlignWords - 1); }

int32_t bits(float value) { return std::bit_cast<int32_t>(value); }

int32_t sampling_flags(const Sequence& seq, int32_t output_idx) {
  const SamplingParams& p = seq.request.sampling;
  const bool greedy = p.temperature == 0.0F;
  const bool penalised =
      p.frequency_penalty != 0.0F || p.presence_penalty != 0.0F || p.repetition_penalty != 1.0F;
  const bool filtered = p.top_k > 0 || p.top_p < 1.0F || p.min_p > 0.0F;
  int32_t flags = 0;
  if (greedy) flags |= msg::kGreedy;
  if (penalised) flags |= msg::kPenalties;
  if (filtered && !greedy) flags |= msg::kFiltered;
  if (!p.logit_bias.empty()) flags |= msg::kBiased;
  if (output_idx < seq.request.min_new_tokens && !p.stop_token_ids.empty()) {
    flags |= msg::kMaskStops;
  }
  if (seq.request.sync) flags |= msg::kMasked;
  if (p.return_logprob) flags |= msg::kWantsLogprobs;
  return flags;
}

// Writes the sections of one message. Each array has its own cursor; sections that every sequence
// adds to stand where the counts, known beforehand, put them.
class Writer {
 public:
  Writer(const SchedulerConfig& config, std::span<int32_t> message, StepPlan& plan)
      : config_(config), base_(message.data()), plan_(plan) {}

  void place(StepId step, int32_t num_updates);
  void write_item(const BatchItem& item, int32_t seq_idx);
  void finish();

 private:
  void write_tokens(const BatchItem& item, int32_t seq_idx);
  void write_updates(const BatchItem& item);
  void write_logit(const BatchItem& item, int32_t row, int32_t token, int32_t seq_idx,
                   int32_t position);
  void write_sample(const BatchItem& item, int32_t seq_idx);
  void write_extra(const SamplingParams& p, int32_t* record, int32_t flags);

  const SchedulerConfig& config_;
  int32_t* base_;
  StepPlan& plan_;
  int32_t token_idx_ = 0, update_idx_ = 0, sample_idx_ = 0, prompt_row_ = 0, num_masked_ = 0;
  int32_t extra_words_ = 0;
};

void Writer::place(StepId step, int32_t num_updates) {
  std::fill_n(base_, static_cast<size_t>(msg::kHeaderWords), 0);
  base_[msg::kStep] = static_cast<int32_t>(static_cast<uint32_t>(step));
  base_[msg::kNumSeqs] = plan_.num_seqs;
  base_[msg::kNumDecode] = plan_.num_decode;
  base_[msg::kNumTokens] = plan_.num_tokens;
  base_[msg::kNumSamples] = plan_.num_samples;
  base_[msg::kNumLogits] = plan_.num_logits;
  base_[msg::kNumPageUpdates] = num_updates;
  int32_t at = msg::kHeaderWords;
  const auto section = [&](msg::Header word, int32_t words) {
    base_[word] = at;
    at += words;  // records are whole multiples of the alignment
  };
  section(msg::kOffSeqs, plan_.num_seqs * msg::kSeqWords);
  section(msg::kOffTokens, plan_.num_tokens * msg::kTokenWords);
  section(msg::kOffPageUpdates, num_updates * msg::kUpdateWords);
  section(msg::kOffLogits, plan_.num_logits * msg::kLogitWords);
  section(msg::kOffSampling, plan_.num_samples * msg::kSamplingWords);
  base_[msg::kOffExtra] = at;
  prompt_row_ = plan_.num_samples;
  plan_.sample_seq_ids.resize(static_cast<size_t>(plan_.num_samples));
  plan_.logit_seq_ids.resize(static_cast<size_t>(plan_.num_logits));
  plan_.logit_positions.resize(static_cast<size_t>(plan_.num_logits));
}

void Writer::write_item(const BatchItem& item, int32_t seq_idx) {
  const bool samples = item.output_idx >= 0;
  int32_t* record = base_ + base_[msg::kOffSeqs] + seq_idx * msg::kSeqWords;
  record[msg::kSeqRow] = item.seq->row;
  record[msg::kSeqQStart] = token_idx_;
  record[msg::kSeqQLen] = item.q_len;
  record[msg::kSeqLen] = item.start + item.q_len;
  record[msg::kSeqPromptLen] = item.seq->prompt_len;
  record[msg::kSeqSampleIdx] = samples ? sample_idx_ : -1;
  record[msg::kSeqFlags] = item.is_new ? msg::kSeqIsNew : 0;
  record[msg::kSeqWords - 1] = 0;
  for (int32_t position = item.logit_begin; position < item.logit_end; ++position) {
    write_logit(item, prompt_row_++, token_idx_ + position - 1 - item.start, seq_idx, position);
  }
  if (samples) write_sample(item, seq_idx);
  if (!samples && item.seq->phase == Phase::kDecode) {
    plan_.prompt_end_seq_ids.push_back(item.seq->request.id);
    plan_.prompt_end_seqs.push_back(seq_idx);
  }
  write_updates(item);
  write_tokens(item, seq_idx);
}

void Writer::write_tokens(const BatchItem& item, int32_t seq_idx) {
  const Sequence& seq = *item.seq;
  const int32_t page_size = config_.page_size;
  int32_t* record = base_ + base_[msg::kOffTokens] + token_idx_ * msg::kTokenWords;
  int32_t page_idx = item.start / page_size;
  int32_t offset = item.start % page_size;
  for (int32_t i = 0; i < item.q_len; ++i, record += msg::kTokenWords) {
    const int32_t position = item.start + i;
    record[msg::kTokenId] = seq.token_at(position);
    record[msg::kTokenPosition] = position;
    record[msg::kTokenSlot] = seq.pages[static_cast<size_t>(page_idx)] * page_size + offset;
    record[msg::kTokenSeq] = seq_idx;
    if (++offset == page_size) {
      offset = 0;
      ++page_idx;
    }
  }
  token_idx_ += item.q_len;
}

void Writer::write_updates(const BatchItem& item) {
  const Sequence& seq = *item.seq;
  int32_t* record = base_ + base_[msg::kOffPageUpdates] + update_idx_ * msg::kUpdateWords;
  for (int32_t i = item.first_update; i < seq.num_pages(); ++i, record += msg::kUpdateWords) {
    record[msg::kUpdateRow] = seq.row;
    record[msg::kUpdatePageIdx] = i;
    record[msg::kUpdatePageId] = seq.pages[static_cast<size_t>(i)];
    record[msg::kUpdateWords - 1] = 0;
    ++update_idx_;
  }
}

void Writer::write_logit(const BatchItem& item, int32_t row, int32_t token, int32_t seq_idx,
                         int32_t position) {
  int32_t* record = base_ + base_[msg::kOffLogits] + row * msg::kLogitWords;
  const bool is_sample = row < plan_.num_samples;
  record[msg::kLogitToken] = token;
  record[msg::kLogitSeq] = seq_idx;
  record[msg::kLogitTarget] = is_sample ? -1 : item.seq->tokens[static_cast<size_t>(position)];
  record[msg::kLogitWords - 1] = 0;
  plan_.logit_seq_ids[static_cast<size_t>(row)] = item.seq->request.id;
  plan_.logit_positions[static_cast<size_t>(row)] = position;
  plan_.max_top_logprobs =
      std::max(plan_.max_top_logprobs, item.seq->request.sampling.top_logprobs);
}

void Writer::write_sample(const BatchItem& item, int32_t seq_idx) {
  const Sequence& seq = *item.seq;
  const SamplingParams& p = seq.request.sampling;
  const int32_t flags = sampling_flags(seq, item.output_idx);
  write_logit(item, sample_idx_, token_idx_ + item.q_len - 1, seq_idx,
              seq.prompt_len + item.output_idx);
  plan_.sample_seq_ids[static_cast<size_t>(sample_idx_)] = seq.request.id;
  plan_.any_sampling_flags |= flags;
  plan_.all_greedy = plan_.all_greedy && (flags & msg::kGreedy) != 0;
  int32_t* record = base_ + base_[msg::kOffSampling] + sample_idx_ * msg::kSamplingWords;
  record[msg::kSampleSeq] = seq_idx;
  record[msg::kSampleFlags] = flags;
  record[msg::kTemperature] = bits(p.temperature);
  record[msg::kTopP] = bits(p.top_p);
  record[msg::kTopK] = p.top_k;
  record[msg::kMinP] = bits(p.min_p);
  record[msg::kFrequency] = bits(p.frequency_penalty);
  record[msg::kPresence] = bits(p.presence_penalty);
  record[msg::kRepetition] = bits(p.repetition_penalty);
  record[msg::kSeedLo] = static_cast<int32_t>(static_cast<uint32_t>(p.seed));
  record[msg::kSeedHi] = static_cast<int32_t>(static_cast<uint32_t>(p.seed >> 32));
  record[msg::kSamplePosition] = item.output_idx;
  record[msg::kBitmaskRow] = (flags & msg::kMasked) != 0 ? num_masked_++ : -1;
  write_extra(p, record, flags);
  ++sample_idx_;
}

void Writer::write_extra(const SamplingParams& p, int32_t* record, int32_t flags) {
  int32_t* const extra = base_ + base_[msg::kOffExtra];
  record[msg::kExtraOffset] = extra_words_;
  record[msg::kNumStopIds] = 0;
  record[msg::kNumBiases] = static_cast<int32_t>(p.logit_bias.size());
  if ((flags & msg::kMaskStops) != 0) {
    record[msg::kNumStopIds] = static_cast<int32_t>(p.stop_token_ids.size());
    for (const TokenId id : p.stop_token_ids) extra[extra_words_++] = id;
  }
  for (const auto& [token, bias] : p.logit_bias) {
    extra[extra_words_++] = token;
    extra[extra_words_++] = bits(bias);
  }
}

void Writer::finish() {
  const int32_t end = base_[msg::kOffExtra] + extra_words_;
  const int32_t total = align(end);
  std::fill(base_ + end, base_ + total, 0);
  base_[msg::kOffWork] = total;
  base_[msg::kTotalWords] = total;
  plan_.num_bytes = int64_t{total} * static_cast<int64_t>(sizeof(int32_t));
  plan_.num_masked = num_masked_;
}

}  // namespace

void Batch::clear() {
  items_.clear();
  num_tokens_ = num_decode_ = num_samples_ = num_prompt_logits_ = num_updates_ = 0;
}

void Batch::add(const BatchItem& item) {
  items_.push_back(item);
  num_tokens_ += item.q_len;
  num_decode_ += item.is_decode ? 1 : 0;
  num_samples_ += item.output_idx >= 0 ? 1 : 0;
  num_prompt_logits_ += item.logit_end - item.logit_begin;
  num_updates_ += item.seq->num_pages() - item.first_update;
}

void Batch::write(StepId step, std::span<int32_t> message, StepPlan& plan) const {
  plan.step = step;
  plan.num_seqs = static_cast<int32_t>(items_.size());
  plan.num_decode = num_decode_;
  plan.num_tokens = num_tokens_;
  plan.num_samples = num_samples_;
  plan.num_logits = num_logits();
  plan.num_extend_tokens = num_tokens_ - num_decode_;
  Writer writer(config_, message, plan);
  writer.place(step, num_updates_);
  int32_t seq_idx = 0;
  for (const BatchItem& item : items_) {
    writer.write_item(item, seq_idx++);
    plan.num_drafts += item.is_draft ? 1 : 0;
    plan.max_q_len = std::max(plan.max_q_len, item.q_len);
    plan.max_seq_len = std::max(plan.max_seq_len, item.start + item.q_len);
  }
  writer.finish();
  SRT_CHECK(plan.num_bytes / 4 <= static_cast<int64_t>(message.size()),
            "the message fits its buffer: " + std::to_string(plan.num_bytes / 4) + " words");
}

}  // namespace srt
