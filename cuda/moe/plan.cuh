// The order of a mixture's work: choices sorted by expert, each expert's rows cut into tiles.
#pragma once

#include "moe/moe.h"

namespace srt::cuda::moe {

// Views into the plan.
struct Plan {
  int32_t* header;
  int32_t* place;   // [choices]: the sorted row of each choice
  int32_t* choice;  // [choices]: the choice of each sorted row

  __host__ __device__ Plan(int32_t* words, const MoeShape& s)
      : header(words),
        place(words + kMoePlanHeader + kMoeTileWords * s.max_tiles()),
        choice(place + s.choices()) {}
};

[[nodiscard]] cudaError_t make_plan(const ExpertsParams& p, cudaStream_t stream);

}  // namespace srt::cuda::moe
