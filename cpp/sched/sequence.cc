#include "sched/sequence.h"

namespace srt {

void Sequence::start(NewSequence&& wish, uint64_t new_serial) {
  request = std::move(wish);
  tokens = std::move(request.tokens);
  serial = new_serial;
  order = new_serial;
  phase = Phase::kWaiting;
  prompt_len = num_known();
  max_new_tokens = request.max_new_tokens;
  // Position 0 follows nothing and has no logprob.
  next_logprob = std::max(request.sampling.logprob_start, 1);
}

void Sequence::reset() {
  std::vector<PageId> kept_room = std::move(pages);
  *this = Sequence{};
  pages = std::move(kept_room);
  pages.clear();
}

}  // namespace srt
