// Names for the integers that travel through the core.
#pragma once

#include <cstdint>

namespace srt {

using TokenId = int32_t;
using SeqId = uint64_t;   // given by the caller of Scheduler::add, unique while alive
using PageId = int32_t;   // index of a page in the KV pool; page 0 is scratch and never handed out
using StepId = uint64_t;  // counts schedule() calls that returned a plan

enum class FinishReason : uint8_t {
  kNone = 0,    // still running
  kStop = 1,    // a stop token id was sampled
  kLength = 2,  // max_new_tokens or the context length was reached
  kAbort = 3,   // the caller aborted it
};

}  // namespace srt
