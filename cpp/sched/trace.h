// Where each sequence's time went: kept while it lives, and for the last few thousand that ended.
//
// The core has no clock: the caller tells the time (microseconds of any clock), and the core notes
// it. Nothing that is decided depends on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "core/types.h"

namespace srt {

// Times are -1 where the moment has not come.
struct Trace {
  SeqId id = 0;
  int64_t added_us = -1;
  int64_t admitted_us = -1;  // first planned
  int64_t first_token_us = -1;
  int64_t ended_us = -1;
  int64_t retracted_us = -1;    // since then it waits again; -1: it does not
  int64_t requeued_for_us = 0;  // waiting after retractions, all together
  int32_t num_prompt_tokens = 0;
  int32_t num_cached_tokens = 0;  // of the prompt, when first admitted
  int32_t num_output_tokens = 0;
  int32_t num_chunks = 0;         // steps that extended it
  int32_t num_extend_tokens = 0;  // that these ran; more than the prompt after a retraction
  int32_t num_retractions = 0;
  int32_t num_steps = 0;  // that it took part in
  int64_t sum_batch = 0;  // of their numbers of sequences
  int32_t max_batch = 0;
  FinishReason finish = FinishReason::kNone;

  void note_step(int32_t num_seqs) {
    ++num_steps;
    sum_batch += num_seqs;
    if (num_seqs > max_batch) max_batch = num_seqs;
  }
};

// The last `capacity` traces of sequences that ended, found by id in O(1).
class TraceLog {
 public:
  static constexpr size_t kCapacity = 4096;

  explicit TraceLog(size_t capacity = kCapacity) : capacity_(capacity) {}

  void push(const Trace& trace);
  const Trace* find(SeqId id) const;  // nullptr: never ended, or too long ago

 private:
  size_t capacity_;
  size_t next_ = 0;  // where the next one goes, once full
  std::vector<Trace> ring_;
  std::unordered_map<SeqId, size_t> place_;
};

}  // namespace srt
