// How rows of values are to be stored in e4m3.
#pragma once

#include <cstdint>

namespace srt::cuda {

constexpr int kFp8Group = 128;  // neighbouring values of a row that share a scale, where grouped

// value = stored * scale. Exactly one of `scales` and `given` is set where a kernel's output is
// fp8; both are null where it has the model's dtype.
struct Fp8Rows {
  float* scales = nullptr;       // written: [num_rows], or [width / kFp8Group][num_rows]
  const float* given = nullptr;  // read: one scale for all values, which saturate
  float limit = 0.0f;            // scales cover magnitudes up to this one only; 0: all
  bool grouped = false;          // width is a multiple of kFp8Group
  int64_t group_stride = 0;      // where grouped: from a group's scales to the next one's

  constexpr bool is_set() const { return scales != nullptr || given != nullptr; }
};

}  // namespace srt::cuda
