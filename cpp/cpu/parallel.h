// Splits a loop over the threads of the process's OpenMP pool, which torch shares.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace srt::cpu {

// Below this many touched elements a fork costs more than it saves.
constexpr int64_t kForkElements = 1 << 15;

// Calls body(begin, end) on disjoint ranges covering [0, n). `elements` is the work in all.
template <typename F>
void parallel_ranges(int64_t n, int64_t elements, const F& body) {
  const auto threads = std::min<int64_t>(omp_get_max_threads(), n);
  if (threads <= 1 || elements < kForkElements || omp_in_parallel() != 0) {
    if (n > 0) body(int64_t{0}, n);
    return;
  }
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    const int64_t id = omp_get_thread_num();
    const int64_t team = omp_get_num_threads();
    body(n * id / team, n * (id + 1) / team);
  }
}

// Calls body(i) for every i in [0, n), handing items out as threads come free.
template <typename F>
void parallel_items(int64_t n, int64_t elements, const F& body) {
  const auto threads = std::min<int64_t>(omp_get_max_threads(), n);
  if (threads <= 1 || elements < kForkElements || omp_in_parallel() != 0) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast<int>(threads))
  for (int64_t i = 0; i < n; ++i) body(i);
}

// Like parallel_ranges, but ranges of `grain` are handed out as threads come free: a thread that
// the system takes away for a moment then holds nobody up.
template <typename F>
void parallel_grains(int64_t n, int64_t grain, int64_t elements, const F& body) {
  parallel_items((n + grain - 1) / grain, elements,
                 [&](int64_t i) { body(i * grain, std::min(n, (i + 1) * grain)); });
}

}  // namespace srt::cpu
