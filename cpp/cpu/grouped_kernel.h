// One item of grouped.h: its rows of x, as float32 in blocks that fit a cache, meet its outputs.
#pragma once

#include "cpu/grouped.h"
#include "cpu/linear_kernel.h"
#include "cpu/scratch.h"

namespace srt::cpu::SRT_ISA {

constexpr int64_t kGroupedChunkBytes = 1 << 17;  // of x, as float32

// y[rows][cols] = x32[rows][in] w[in][cols], for kRows rows and kVecs vectors of columns.
template <int kRows, int kVecs, typename T>
inline void product_block(const float* x32, int64_t in, const T* w, int64_t w_stride, int64_t n,
                          T* y, int64_t y_stride) {
  Vec acc[kRows][kVecs];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVecs; ++j) acc[i][j] = splat(0.0F);
  }
  for (int64_t k = 0; k < in; ++k) {
    Vec v[kVecs];
    for (int j = 0; j < kVecs; ++j) {
      v[j] = n == kLanes ? load(w + k * w_stride + j * kLanes) : load_n(w + k * w_stride, n);
    }
    for (int i = 0; i < kRows; ++i) {
      const Vec scale = splat(x32[i * in + k]);
      for (int j = 0; j < kVecs; ++j) acc[i][j] = fma(scale, v[j], acc[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVecs; ++j) store_part(y + i * y_stride + j * kLanes, acc[i][j], n);
  }
}

template <int kRows, typename T>
inline void product_rows(const GroupedLinearParams& p, const float* x32, const T* w, T* y,
                         int64_t begin, int64_t end) {
  int64_t n = begin;
  for (; n + 2 * kLanes <= end; n += 2 * kLanes) {
    product_block<kRows, 2>(x32, p.in, w + n, p.w_stride, kLanes, y + n, p.y_stride);
  }
  for (; n < end; n += kLanes) {
    const int64_t part = end - n < kLanes ? end - n : static_cast<int64_t>(kLanes);
    product_block<kRows, 1>(x32, p.in, w + n, p.w_stride, part, y + n, p.y_stride);
  }
}

template <typename T>
inline void product(const GroupedLinearParams& p, const float* x32, int64_t rows, const T* w, T* y,
                    int64_t begin, int64_t end) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    product_rows<4>(p, x32 + r * p.in, w, y + r * p.y_stride, begin, end);
  }
  for (; r < rows; ++r) product_rows<1>(p, x32 + r * p.in, w, y + r * p.y_stride, begin, end);
}

template <typename T>
inline void grouped_item(const GroupedLinearParams& p, const GroupedItem& item) {
  const int64_t fit = kGroupedChunkBytes / (static_cast<int64_t>(sizeof(float)) * p.in);
  const int64_t chunk = fit < kBlockRows ? kBlockRows : fit / kBlockRows * kBlockRows;
  const T* x = static_cast<const T*>(p.x) + item.group * p.x_group_stride;
  const T* w = static_cast<const T*>(p.w) + item.group * p.w_group_stride;
  const int64_t rows = item.last_row - item.first_row;
  float* x32 = scratch(Scratch::kWork, static_cast<size_t>((rows < chunk ? rows : chunk) * p.in));
  for (int64_t first = item.first_row; first < item.last_row; first += chunk) {
    const int64_t count = item.last_row - first < chunk ? item.last_row - first : chunk;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t from = p.source == nullptr ? first + r : p.source[first + r];
      const T* row = x + from * p.x_stride;
      for_lanes(p.in, [&](int64_t i, int64_t n) {
        store_part(x32 + r * p.in + i, load_part(row + i, n), n);
      });
    }
    T* y = static_cast<T*>(p.y) + item.group * p.y_group_stride + first * p.y_stride;
    if (p.w_transposed) {
      product(p, x32, count, w, y, item.begin, item.end);
      continue;
    }
    const LinearParams one{.dtype = p.dtype,
                           .x = nullptr,
                           .w = w,
                           .bias = nullptr,
                           .y = y,
                           .rows = count,
                           .in = p.in,
                           .out = p.out,
                           .x_stride = 0,
                           .w_stride = p.w_stride,
                           .y_stride = p.y_stride,
                           .x32 = x32,
                           .x32_stride = p.in};
    for (int64_t n = item.begin; n < item.end; n += kPanel) {
      linear_panel<T>(one, 0, count, n, item.end - n < kPanel ? item.end - n : kPanel);
    }
  }
}

inline void grouped(const GroupedLinearParams& p, const GroupedItem& item) {
  with_type(p.dtype, [&](auto tag) { grouped_item<typename decltype(tag)::type>(p, item); });
}

}  // namespace srt::cpu::SRT_ISA
