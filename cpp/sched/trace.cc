#include "sched/trace.h"

namespace srt {

void TraceLog::push(const Trace& trace) {
  if (ring_.size() < capacity_) {
    ring_.push_back(trace);
    place_[trace.id] = ring_.size() - 1;
    return;
  }
  const auto oldest = place_.find(ring_[next_].id);
  if (oldest != place_.end() && oldest->second == next_) place_.erase(oldest);
  ring_[next_] = trace;
  place_[trace.id] = next_;
  next_ = (next_ + 1) % capacity_;
}

const Trace* TraceLog::find(SeqId id) const {
  const auto found = place_.find(id);
  return found == place_.end() ? nullptr : &ring_[found->second];
}

}  // namespace srt
