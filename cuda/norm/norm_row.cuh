// The phases of a norm over a row that a block (or a warp) holds in its registers.
#pragma once

#include "common/fp8_rows.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "norm/norm.h"

namespace srt::cuda {

constexpr int kNormLane = 8;  // values of one vector

__device__ __forceinline__ int64_t row_offset(const RowLayout& rows, int row) {
  return row / rows.inner * rows.outer_stride + row % rows.inner * rows.inner_stride;
}

// This thread's part of a row: vectors threadIdx.x, threadIdx.x + blockDim.x, ...
template <int kVecs, typename F>
__device__ __forceinline__ void for_vectors(int hidden, F&& f) {
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int at = static_cast<int>(threadIdx.x + i * blockDim.x) * kNormLane;
    if (at < hidden) f(i, at);
  }
}

// values += the residual, which takes the rounded sum; `before` is what the residual holds.
template <typename T, int kVecs>
__device__ __forceinline__ void add_residual(float (&values)[kVecs][kNormLane],
                                             const Vec<T, kNormLane> (&before)[kVecs], T* residual,
                                             int hidden) {
  for_vectors<kVecs>(hidden, [&](int i, int at) {
#pragma unroll
    for (int j = 0; j < kNormLane; ++j)
      values[i][j] = rounded<T>(values[i][j] + to_float(before[i][j]));
    store_floats(residual + at, values[i]);
  });
}

// Centres the values where asked; returns 1 / their root mean square.
template <int kVecs>
__device__ __forceinline__ float normalize(float (&values)[kVecs][kNormLane], const NormParams& p,
                                           float* scratch) {
  const float count = static_cast<float>(p.hidden);
  if (p.centered) {
    float sum = 0.0f;
    for_vectors<kVecs>(p.hidden, [&](int i, int) {
#pragma unroll
      for (int j = 0; j < kNormLane; ++j) sum += values[i][j];
    });
    const float mean = block_reduce(sum, 0.0f, Add{}, scratch) / count;
    for_vectors<kVecs>(p.hidden, [&](int i, int) {
#pragma unroll
      for (int j = 0; j < kNormLane; ++j) values[i][j] -= mean;
    });
  }
  float squares = 0.0f;
  for_vectors<kVecs>(p.hidden, [&](int i, int) {
#pragma unroll
    for (int j = 0; j < kNormLane; ++j) squares += values[i][j] * values[i][j];
  });
  return rsqrtf(block_reduce(squares, 0.0f, Add{}, scratch + kWarpSize) / count + p.eps);
}

template <typename T, int kVecs>
__device__ __forceinline__ void apply_weight(float (&values)[kVecs][kNormLane],
                                             const Vec<T, kNormLane> (&weight)[kVecs], float scale,
                                             const NormParams& p) {
  const T* const bias = static_cast<const T*>(p.bias);
  const bool round_first = !p.centered && p.weight_offset == 0.0f;
  for_vectors<kVecs>(p.hidden, [&](int i, int at) {
#pragma unroll
    for (int j = 0; j < kNormLane; ++j) {
      const float x = values[i][j] * scale;
      const float w = to_float(weight[i][j]) + p.weight_offset;
      values[i][j] = (round_first ? rounded<T>(x) : x) * w;
    }
    if (bias == nullptr) return;
    float b[kNormLane];
    load_floats(bias + at, b);
#pragma unroll
    for (int j = 0; j < kNormLane; ++j) values[i][j] += b[j];
  });
}

// Everything behind the residual add: norm, weight, store. `scratch`: 3 * kWarpSize floats.
template <typename T, int kVecs>
__device__ __forceinline__ void finish_norm(float (&values)[kVecs][kNormLane],
                                            const Vec<T, kNormLane> (&weight)[kVecs],
                                            const NormParams& p, int row, float* scratch) {
  const float scale = normalize(values, p, scratch);
  apply_weight(values, weight, scale, p);
  if (p.fp8.is_set()) {
    for_vectors<kVecs>(p.hidden, [&](int i, int) {
#pragma unroll
      for (int j = 0; j < kNormLane; ++j) values[i][j] = rounded<T>(values[i][j]);
    });
    store_fp8_row(values, p.fp8, static_cast<uint8_t*>(p.out), row, p.hidden,
                  scratch + 2 * kWarpSize);
    return;
  }
  T* const out = static_cast<T*>(p.out) + row_offset(p.out_rows, row);
  for_vectors<kVecs>(p.hidden, [&](int i, int at) { store_floats(out + at, values[i]); });
}

}  // namespace srt::cuda
