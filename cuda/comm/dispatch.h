// Number of ranks, shots and dtype as template arguments.
#pragma once

#include "common/launch.h"

// Runs the body with `T`, `kRanks` and `kTwoShots` bound; the body returns.
#define SRT_DISPATCH_RANKS(size, two_shots, kRanks, kTwoShots, ...) \
  if ((size) == 2) {                                                \
    constexpr int kRanks = 2;                                       \
    constexpr bool kTwoShots = false;                               \
    __VA_ARGS__                                                     \
  }                                                                 \
  if ((size) == 4) {                                                \
    constexpr int kRanks = 4;                                       \
    SRT_DISPATCH_BOOL(two_shots, kTwoShots, __VA_ARGS__)            \
  }                                                                 \
  if ((size) == 8) {                                                \
    constexpr int kRanks = 8;                                       \
    SRT_DISPATCH_BOOL(two_shots, kTwoShots, __VA_ARGS__)            \
  }                                                                 \
  return cudaErrorInvalidValue

#define SRT_DISPATCH_HALF_DTYPE(dtype, T, ...) \
  if ((dtype) == ::srt::cuda::Dtype::kF16) {   \
    using T = __half;                          \
    __VA_ARGS__                                \
  }                                            \
  if ((dtype) == ::srt::cuda::Dtype::kBF16) {  \
    using T = __nv_bfloat16;                   \
    __VA_ARGS__                                \
  }                                            \
  return cudaErrorInvalidValue
