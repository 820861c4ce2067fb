// Stores a block's row of values in e4m3, with its own scale, one for each 128 values, or a given
// one.
#pragma once

#include "common/fp8.cuh"
#include "common/fp8_rows.h"
#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace srt::cuda {

constexpr int kFp8Lane = 8;  // values of one vector of a thread

__device__ __forceinline__ float fp8_scale(float largest, float limit) {
  if (limit > 0.0f) largest = fminf(largest, limit);
  return largest > 0.0f ? largest / kFp8Max<Fp8::kE4M3> : 1.0f;
}

// values[i] are those of the row from (threadIdx.x + i * blockDim.x) * 8 on, already rounded to the
// dtype that the row stands for. Every thread of the block calls this; `scratch` holds 32 floats.
template <int kVecs>
__device__ __forceinline__ void store_fp8_row(const float (&values)[kVecs][kFp8Lane],
                                              const Fp8Rows& to, uint8_t* out, int64_t row,
                                              int width, float* scratch) {
  float largest[kVecs];
  float row_largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int at = static_cast<int>(threadIdx.x + i * blockDim.x) * kFp8Lane;
    largest[i] = 0.0f;
    if (at < width) {
#pragma unroll
      for (int j = 0; j < kFp8Lane; ++j) largest[i] = fmaxf(largest[i], fabsf(values[i][j]));
    }
    row_largest = fmaxf(row_largest, largest[i]);
  }
  float row_scale = 1.0f;
  if (to.given != nullptr) {
    row_scale = __ldg(to.given);
  } else if (!to.grouped) {
    row_scale = fp8_scale(block_reduce(row_largest, 0.0f, Max{}, scratch), to.limit);
    if (threadIdx.x == 0) to.scales[row] = row_scale;
  }
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int at = static_cast<int>(threadIdx.x + i * blockDim.x) * kFp8Lane;
    float scale = row_scale;
    if (to.grouped) {
      scale = fp8_scale(warp_max<kFp8Group / kFp8Lane>(largest[i]), to.limit);
      if (at < width && at % kFp8Group == 0)
        to.scales[at / kFp8Group * to.group_stride + row] = scale;
    }
    if (at >= width) continue;
    const float inverse = 1.0f / scale;
    float y[kFp8Lane];
#pragma unroll
    for (int j = 0; j < kFp8Lane; ++j) y[j] = values[i][j] * inverse;
    store_fp8_vec<Fp8::kE4M3>(out + row * width + at, y);
  }
}

}  // namespace srt::cuda
