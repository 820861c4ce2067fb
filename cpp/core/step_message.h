// Word positions of the step message; docs/contracts.md section 3 explains each field.
#pragma once

#include <cstdint>

namespace srt::msg {

enum Header : int {
  kStep = 0,
  kNumSeqs,
  kNumDecode,
  kNumTokens,
  kNumSamples,
  kNumLogits,
  kNumPageUpdates,
  kNumWork,
  kOffSeqs,
  kOffTokens,
  kOffPageUpdates,
  kOffLogits,
  kOffSampling,
  kOffWork,
  kOffExtra,
  kTotalWords,
  kHeaderWords = 32,
};

enum SeqRecord : int {
  kSeqRow = 0,
  kSeqQStart,
  kSeqQLen,
  kSeqLen,
  kSeqPromptLen,
  kSeqSampleIdx,
  kSeqFlags,
  kSeqWords = 8,
};

enum SeqFlags : int32_t {
  kSeqIsNew = 1,  // the row was given to this sequence in this step
};

enum TokenRecord : int { kTokenId = 0, kTokenPosition, kTokenSlot, kTokenSeq, kTokenWords = 4 };

enum PageUpdateRecord : int { kUpdateRow = 0, kUpdatePageIdx, kUpdatePageId, kUpdateWords = 4 };

enum LogitRecord : int { kLogitToken = 0, kLogitSeq, kLogitTarget, kLogitWords = 4 };

enum SamplingRecord : int {
  kSampleSeq = 0,
  kSampleFlags,
  kTemperature,
  kTopP,
  kTopK,
  kMinP,
  kFrequency,
  kPresence,
  kRepetition,
  kSeedLo,
  kSeedHi,
  kSamplePosition,
  kExtraOffset,
  kNumStopIds,
  kNumBiases,
  kBitmaskRow,
  kSamplingWords = 16,
};

enum SamplingFlags : int32_t {
  kGreedy = 1,
  kPenalties = 2,
  kFiltered = 4,
  kBiased = 8,
  kMaskStops = 16,
  kMasked = 32,
  kWantsLogprobs = 64,
};

// Decodes of one sequence in a step beside the first. Kernels that read KV of earlier steps before
// this step's is written count on it.
constexpr int kMaxDrafts = 15;

constexpr int kAlignWords = 4;  // sections start 16-byte aligned

}  // namespace srt::msg
