#include "cpu/step.h"

#include <algorithm>

#include "core/error.h"
#include "core/step_message.h"

namespace srt::cpu {
namespace {

struct Sizes {
  int64_t seqs, tokens, samples, logits, updates, padded_logits;
};

void check_section(const StepParams& p, int offset_word, int64_t count, int64_t words) {
  const int64_t offset = p.message[offset_word];
  expect(count >= 0 && (count == 0 ||
                        (offset >= msg::kHeaderWords && offset + count * words <= p.message_words)),
         "message has a section that reaches beyond its end");
}

Sizes check(const StepParams& p) {
  expect(p.message_words >= msg::kHeaderWords, "message is shorter than its header");
  const int32_t* head = p.message;
  const Sizes n{
      head[msg::kNumSeqs],        head[msg::kNumTokens],
      head[msg::kNumSamples],     head[msg::kNumLogits],
      head[msg::kNumPageUpdates], std::max<int64_t>(head[msg::kNumLogits], p.padded_seqs)};
  check_section(p, msg::kOffSeqs, n.seqs, msg::kSeqWords);
  check_section(p, msg::kOffTokens, n.tokens, msg::kTokenWords);
  check_section(p, msg::kOffPageUpdates, n.updates, msg::kUpdateWords);
  check_section(p, msg::kOffLogits, n.logits, msg::kLogitWords);
  check_section(p, msg::kOffSampling, n.samples, msg::kSamplingWords);
  expect(n.seqs <= p.padded_seqs && p.padded_seqs <= p.max_seqs,
         "padded_seqs must be at least num_seqs and fit the buffers");
  expect(n.tokens + p.padded_seqs - n.seqs <= p.padded_tokens && p.padded_tokens <= p.max_tokens,
         "padded_tokens must hold num_tokens and one token per padding sequence, and fit the "
         "buffers");
  expect(n.samples <= n.seqs && n.padded_logits <= p.max_logits, "logit rows must fit the buffers");
  return n;
}

void fill(int32_t* buffer, int64_t begin, int64_t end, int32_t value) {
  std::fill(buffer + begin, buffer + std::max(begin, end), value);
}

void unpack_seqs(const StepParams& p, const Sizes& n) {
  const int32_t* seq = p.message + p.message[msg::kOffSeqs];
  for (int64_t i = 0; i < n.seqs; ++i, seq += msg::kSeqWords) {
    p.rows[i] = seq[msg::kSeqRow];
    p.seq_lens[i] = seq[msg::kSeqLen];
    p.prompt_lens[i] = seq[msg::kSeqPromptLen];
    p.q_indptr[i] = seq[msg::kSeqQStart];
  }
  fill(p.rows, n.seqs, p.padded_seqs, static_cast<int32_t>(p.num_rows - 1));
  fill(p.seq_lens, n.seqs, p.padded_seqs, 1);
  fill(p.prompt_lens, n.seqs, p.padded_seqs, 1);
  for (int64_t i = n.seqs; i <= p.padded_seqs; ++i) {
    p.q_indptr[i] = static_cast<int32_t>(n.tokens + i - n.seqs);
  }
}

void unpack_tokens(const StepParams& p, const Sizes& n) {
  const int32_t* token = p.message + p.message[msg::kOffTokens];
  for (int64_t i = 0; i < n.tokens; ++i, token += msg::kTokenWords) {
    const int32_t seq = token[msg::kTokenSeq];
    const int32_t slot = token[msg::kTokenSlot];
    expect(seq >= 0 && seq < n.seqs && slot >= 0 && slot < p.num_slots,
           "message names a sequence or a slot that does not exist");
    const int32_t given = token[msg::kTokenId];
    const int32_t id = given < 0 ? p.last_tokens[p.rows[seq]] : given;
    p.token_ids[i] = id;
    p.positions[i] = token[msg::kTokenPosition];
    p.slots[i] = slot;
    p.token_seq[i] = seq;
    p.slot_tokens[slot] = id;
  }
  fill(p.token_ids, n.tokens, p.padded_tokens, 0);
  fill(p.positions, n.tokens, p.padded_tokens, 0);
  fill(p.slots, n.tokens, p.padded_tokens, 0);
  fill(p.token_seq, n.tokens, p.padded_tokens,
       static_cast<int32_t>(std::max<int64_t>(p.padded_seqs - 1, 0)));
}

void unpack_logits(const StepParams& p, const Sizes& n) {
  const int32_t* logit = p.message + p.message[msg::kOffLogits];
  for (int64_t i = 0; i < n.logits; ++i, logit += msg::kLogitWords) {
    p.logit_idx[i] = logit[msg::kLogitToken];
    p.logit_targets[i] = logit[msg::kLogitTarget];
  }
  fill(p.logit_idx, n.logits, n.padded_logits, 0);
  fill(p.logit_targets, n.logits, n.padded_logits, -1);

  const int32_t* record = p.message + p.message[msg::kOffSampling];
  std::copy(record, record + n.samples * msg::kSamplingWords, p.sampling);
  for (int64_t i = 0; i < n.samples; ++i, record += msg::kSamplingWords) {
    p.sample_rows[i] = p.rows[record[msg::kSampleSeq]];
  }
  fill(p.sampling, n.samples * msg::kSamplingWords, p.padded_seqs * msg::kSamplingWords, 0);
  for (int64_t i = n.samples; i < p.padded_seqs; ++i) {
    p.sampling[i * msg::kSamplingWords + msg::kSampleFlags] = msg::kGreedy;
  }
  fill(p.sample_rows, n.samples, p.padded_seqs, static_cast<int32_t>(p.num_rows - 1));
}

}  // namespace

void prepare_step(const StepParams& p) {
  const Sizes n = check(p);
  const int32_t* update = p.message + p.message[msg::kOffPageUpdates];
  for (int64_t i = 0; i < n.updates; ++i, update += msg::kUpdateWords) {
    const int64_t row = update[msg::kUpdateRow];
    const int64_t page_idx = update[msg::kUpdatePageIdx];
    expect(row >= 0 && row < p.num_rows && page_idx >= 0 && page_idx < p.page_stride,
           "message updates a page-table entry that does not exist");
    p.page_table[row * p.page_stride + page_idx] = update[msg::kUpdatePageId];
  }
  unpack_seqs(p, n);
  unpack_tokens(p, n);
  unpack_logits(p, n);
}

}  // namespace srt::cpu
