// How rows of values are to be stored in e4m3.
#pragma once

#include <cstdint>

namespace srt::cuda {

constexpr int kFp8Group = 128;  // neighbouring values of a row that share a scale, where grouped

// value = stored * scale. Exactly one of `scales` and `given` is set where a kernel's output is
// fp8; both are null where it has the model's dtype.
struct Fp8Rows {
  float* scales = nullptr;       // written: [num_rows], or [num_rows, width / kFp8Group]
  const float* given = nullptr;  // read: one scale for all values, which saturate
  float limit = 0.0f;            // scales cover magnitudes up to this one only; 0: all
  bool grouped = false;          // width is a multiple of kFp8Group

  constexpr bool is_set() const { return scales != nullptr || given != nullptr; }
};

}  // namespace srt::cuda
