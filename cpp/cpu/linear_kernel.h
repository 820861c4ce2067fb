// The loops of linear.h, over a range of outputs.
//
// A panel of weight rows stays in the L2 cache while 4 rows of x at a time, in the L1 cache, meet
// it. A dot product adds up in one order whatever block it belongs to, so a row's result does not
// depend on the rows beside it.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/dot_block.h"
#include "cpu/linear.h"

namespace srt::cpu::SRT_ISA {

constexpr int64_t kPanel = 24;            // a multiple of kBlockCols
constexpr int64_t kChunkBytes = 1 << 18;  // of x: half of a small L2 cache

// block[rows][cols] = x w^T for e4m3 weights: each group of k is summed by itself, then scaled.
inline void scaled_product(const LinearParams& p, int64_t m, int64_t rows, int64_t begin,
                           int64_t cols, float* block) {
  const E4M3* w = static_cast<const E4M3*>(p.w) + begin * p.w_stride;
  const int64_t num_groups = (p.in + p.group - 1) / p.group;
  const auto product = m == 0 ? dot_matrix<true, E4M3> : dot_matrix<false, E4M3>;
  float part[kBlockRows * kPanel];
  for (int64_t g = 0; g < num_groups; ++g) {
    const int64_t k = g * p.group;
    const int64_t size = p.in - k < p.group ? p.in - k : p.group;
    product(p.x32 + m * p.x32_stride + k, p.x32_stride, rows, w + k, p.w_stride, cols, size, part,
            kPanel);
    const float* scales = p.scales + begin * num_groups + g;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        const float before = g == 0 ? 0.0F : block[i * kPanel + j];
        block[i * kPanel + j] = before + part[i * kPanel + j] * scales[j * num_groups];
      }
    }
  }
}

template <typename T>
void linear_panel(const LinearParams& p, int64_t first_row, int64_t last_row, int64_t begin,
                  int64_t cols) {
  const T* bias = static_cast<const T*>(p.bias);
  float block[kBlockRows * kPanel];
  for (int64_t m = first_row; m < last_row; m += kBlockRows) {
    const int64_t rows = last_row - m < kBlockRows ? last_row - m : kBlockRows;
    if (p.scales != nullptr) {
      scaled_product(p, m, rows, begin, cols, block);
    } else {
      const auto product = m == 0 ? dot_matrix<true, T> : dot_matrix<false, T>;
      const T* w = static_cast<const T*>(p.w) + begin * p.w_stride;
      product(p.x32 + m * p.x32_stride, p.x32_stride, rows, w, p.w_stride, cols, p.in, block,
              kPanel);
    }
    for (int64_t i = 0; i < rows; ++i) {
      T* y = static_cast<T*>(p.y) + (m + i) * p.y_stride + begin;
      for_lanes(cols, [&](int64_t j, int64_t n) {
        const Vec shift = bias == nullptr ? splat(0.0F) : load_part(bias + begin + j, n);
        store_part(y + j, load_part(block + i * kPanel + j, n) + shift, n);
      });
    }
  }
}

inline void linear(const LinearParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t chunk = kChunkBytes / (static_cast<int64_t>(sizeof(float)) * p.in * kBlockRows);
    const int64_t rows = chunk < 1 ? kBlockRows : chunk * kBlockRows;
    for (int64_t m = 0; m < p.rows; m += rows) {
      const int64_t last = p.rows - m < rows ? p.rows : m + rows;
      for (int64_t n = begin; n < end; n += kPanel) {
        linear_panel<T>(p, m, last, n, end - n < kPanel ? end - n : kPanel);
      }
    }
  });
}

inline void to_float(DType dtype, const void* x, int64_t rows, int64_t cols, int64_t stride,
                     float* out) {
  with_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (int64_t r = 0; r < rows; ++r) {
      const T* in = static_cast<const T*>(x) + r * stride;
      for_lanes(cols, [&](int64_t i, int64_t n) {
        store_part(out + r * cols + i, load_part(in + i, n), n);
      });
    }
  });
}

}  // namespace srt::cpu::SRT_ISA
