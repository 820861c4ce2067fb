// A step message taken apart into named records, as the device would read it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/step_message.h"

namespace srt {

struct StepReader {
  struct Seq {
    int32_t row, q_start, q_len, seq_len, prompt_len, sample_idx, flags;
  };
  struct Token {
    int32_t id, position, slot, seq;
  };
  struct Update {
    int32_t row, page_idx, page;
  };
  struct Logit {
    int32_t token, seq, target;
  };

  explicit StepReader(std::span<const int32_t> words) : words(words) {
    for (int32_t i = 0; i < words[msg::kNumSeqs]; ++i) {
      const int32_t* r = record(msg::kOffSeqs, i, msg::kSeqWords);
      seqs.push_back({r[0], r[1], r[2], r[3], r[4], r[5], r[6]});
    }
    for (int32_t i = 0; i < words[msg::kNumTokens]; ++i) {
      const int32_t* r = record(msg::kOffTokens, i, msg::kTokenWords);
      tokens.push_back({r[0], r[1], r[2], r[3]});
    }
    for (int32_t i = 0; i < words[msg::kNumPageUpdates]; ++i) {
      const int32_t* r = record(msg::kOffPageUpdates, i, msg::kUpdateWords);
      updates.push_back({r[0], r[1], r[2]});
    }
    for (int32_t i = 0; i < words[msg::kNumLogits]; ++i) {
      const int32_t* r = record(msg::kOffLogits, i, msg::kLogitWords);
      logits.push_back({r[0], r[1], r[2]});
    }
  }

  const int32_t* record(msg::Header offset, int32_t i, int32_t width) const {
    return words.data() + words[static_cast<size_t>(offset)] + i * width;
  }
  const int32_t* sampling(int32_t i) const {
    return record(msg::kOffSampling, i, msg::kSamplingWords);
  }
  int32_t num_decode() const { return words[msg::kNumDecode]; }
  int32_t num_samples() const { return words[msg::kNumSamples]; }

  std::span<const int32_t> words;
  std::vector<Seq> seqs;
  std::vector<Token> tokens;
  std::vector<Update> updates;
  std::vector<Logit> logits;
};

}  // namespace srt
