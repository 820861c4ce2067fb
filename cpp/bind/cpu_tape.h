// A tape of CPU kernel calls: recorded while Python runs a step once, then replayed in one call.
//
// What CUDA graphs are to the device: Python, argument checks and the GIL leave the step. A call is
// recorded with its addresses, so whoever records must keep every tensor alive and at its place,
// and run nothing between the calls that is not one of ours.
#pragma once

#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include "core/error.h"

namespace srt::bind {

class CpuTape {
 public:
  CpuTape() = default;
  CpuTape(const CpuTape&) = delete;
  CpuTape& operator=(const CpuTape&) = delete;
  ~CpuTape() {
    if (recording() == this) recording() = nullptr;
  }

  // The tape that takes this thread's calls; nullptr: none.
  static CpuTape*& recording() {
    thread_local CpuTape* tape = nullptr;
    return tape;
  }

  void begin() {
    expect(recording() == nullptr, "this thread records a tape already");
    recording() = this;
  }
  void end() {
    expect(recording() == this, "this thread does not record this tape");
    recording() = nullptr;
  }
  void add(std::function<void()> call) { calls_.push_back(std::move(call)); }
  void replay() const {
    for (const auto& call : calls_) call();
  }
  size_t size() const { return calls_.size(); }

 private:
  std::vector<std::function<void()>> calls_;
};

}  // namespace srt::bind
