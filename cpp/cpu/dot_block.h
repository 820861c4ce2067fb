// Blocks of dot products: the inner loop of linear and of attention scores.
#pragma once

#include <type_traits>

#include "cpu/simd.h"

namespace srt::cpu::SRT_ISA {

constexpr int64_t kAheadBytes = 12288;

// c[i][j] = sum over k of a[i][k] * b[j][k], for kRows x kCols dot products held in registers.
// Strides count elements; size is any. kStream: b comes from memory, so what follows it there is
// fetched ahead: in the order of addresses, which is the one that memory serves fastest.
template <int kRows, int kCols, bool kStream, typename B>
inline void dot_block(const float* a, int64_t a_stride, const B* b, int64_t b_stride, int64_t size,
                      float* c, int64_t c_stride) {
  Vec acc[kRows][kCols];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kCols; ++j) acc[i][j] = splat(0.0F);
  }
  int64_t k = 0;
  for (; k + kLanes <= size; k += kLanes) {
    Vec w[kCols];
    for (int j = 0; j < kCols; ++j) {
      w[j] = load(b + j * b_stride + k);
      if (kStream)
        prefetch(b + kAheadBytes / static_cast<int64_t>(sizeof(B)) + k * kCols + j * kLanes);
    }
    for (int i = 0; i < kRows; ++i) {
      const Vec x = load(a + i * a_stride + k);
      for (int j = 0; j < kCols; ++j) acc[i][j] = fma(x, w[j], acc[i][j]);
    }
  }
  if (k < size) {
    for (int j = 0; j < kCols; ++j) {
      const Vec w = load_n(b + j * b_stride + k, size - k);
      for (int i = 0; i < kRows; ++i) {
        acc[i][j] = fma(load_n(a + i * a_stride + k, size - k), w, acc[i][j]);
      }
    }
  }
  for (int j = 0; j < kCols; ++j) {
    for (int first = 0; first < kRows; first += 4) {
      Vec column[4];
      for (int i = 0; i < 4; ++i) {
        column[i] = first + i < kRows ? acc[first + i < kRows ? first + i : 0][j] : splat(0.0F);
      }
      float sums[4];
      sum4(column, sums);
      for (int i = 0; i < 4 && first + i < kRows; ++i) c[(first + i) * c_stride + j] = sums[i];
    }
  }
}

// The sums, three weights and one x fill the registers: 16, or 32 with AVX-512.
constexpr int kBlockRows = kLanes == 16 ? 8 : 4;
constexpr int kBlockCols = 3;

template <int kRows, bool kStream, typename B>
inline void dot_cols(const float* a, int64_t a_stride, const B* b, int64_t b_stride, int64_t cols,
                     int64_t size, float* c, int64_t c_stride) {
  int64_t j = 0;
  for (; j + kBlockCols <= cols; j += kBlockCols) {
    dot_block<kRows, kBlockCols, kStream>(a, a_stride, b + j * b_stride, b_stride, size, c + j,
                                          c_stride);
  }
  for (; j < cols; ++j) {
    dot_block<kRows, 1, false>(a, a_stride, b + j * b_stride, b_stride, size, c + j, c_stride);
  }
}

// c[rows][cols] = a[rows][size] b[cols][size]^T.
template <bool kStream, typename B>
inline void dot_matrix(const float* a, int64_t a_stride, int64_t rows, const B* b, int64_t b_stride,
                       int64_t cols, int64_t size, float* c, int64_t c_stride) {
  int64_t i = 0;
  const auto rows_of = [&](auto count) {
    constexpr int kRows = decltype(count)::value;
    dot_cols<kRows, kStream>(a + i * a_stride, a_stride, b, b_stride, cols, size, c + i * c_stride,
                             c_stride);
    i += kRows;
  };
  while (i + kBlockRows <= rows) rows_of(std::integral_constant<int, kBlockRows>{});
  if (kBlockRows > 4 && i + 4 <= rows) rows_of(std::integral_constant<int, 4>{});
  switch (rows - i) {
    case 3:
      return rows_of(std::integral_constant<int, 3>{});
    case 2:
      return rows_of(std::integral_constant<int, 2>{});
    case 1:
      return rows_of(std::integral_constant<int, 1>{});
    default:
      return;
  }
}

}  // namespace srt::cpu::SRT_ISA
