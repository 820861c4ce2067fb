// Word positions of the step message; the same as cpp/core/step_message.h, which this room may not
// include: the binding asserts that they agree.
#pragma once

namespace srt::cuda::message {

constexpr int kNumSeqs = 1;
constexpr int kNumTokens = 3;
constexpr int kNumSamples = 4;
constexpr int kNumLogits = 5;
constexpr int kNumPageUpdates = 6;
constexpr int kOffSeqs = 8;
constexpr int kOffTokens = 9;
constexpr int kOffPageUpdates = 10;
constexpr int kOffLogits = 11;
constexpr int kOffSampling = 12;
constexpr int kOffExtra = 14;

constexpr int kSeqWords = 8;        // row, q_start, q_len, seq_len, prompt_len, ...
constexpr int kTokenWords = 4;      // token_id, position, slot, seq_idx
constexpr int kUpdateWords = 4;     // row, page_idx, page_id
constexpr int kLogitWords = 4;      // token_idx, seq_idx, target
constexpr int kSamplingWords = 16;  // struct SamplingRecord

// One record of the sampling section, as it lies in memory.
struct alignas(16) SamplingRecord {
  int seq;
  int flags;
  float temperature;
  float top_p;
  int top_k;
  float min_p;
  float frequency;
  float presence;
  float repetition;
  unsigned seed_lo;
  unsigned seed_hi;
  unsigned position;
  int extra_offset;
  int num_stop_ids;
  int num_biases;
  int bitmask_row;
};
static_assert(sizeof(SamplingRecord) == 4 * kSamplingWords);

constexpr int kFlagGreedy = 1;
constexpr int kFlagPenalties = 2;
constexpr int kFlagFiltered = 4;
constexpr int kFlagBiased = 8;
constexpr int kFlagMaskStops = 16;
constexpr int kFlagMasked = 32;

}  // namespace srt::cuda::message
