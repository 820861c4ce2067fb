// Matrix products of groups: rows of x, each with the weight of its group. The experts of a
// mixture, and the heads of latent attention.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace srt::cpu {

// Strides count elements; the last dimension of x, w and y is contiguous.
struct GroupedLinearParams {
  DType dtype;            // f32, bf16 or f16: of x, w and y
  const void* x;          // row r of group g: x + g * x_group_stride + source(r) * x_stride
  const void* w;          // [groups, out, in], or [groups, in, out] where w_transposed
  void* y;                // row r of group g: y + g * y_group_stride + r * y_stride
  const int32_t* indptr;  // [groups + 1]: group g has rows [indptr[g], indptr[g + 1]); nullptr:
                          // every group has rows [0, rows)
  const int32_t* source;  // row r of x is its source[r]-th; nullptr: its r-th
  int64_t groups, rows, in, out;  // rows: with an indptr, of all groups together
  int64_t x_stride, x_group_stride, y_stride, y_group_stride, w_stride, w_group_stride;
  bool w_transposed;
};

// One task: outputs [begin, end) of a group's rows.
struct GroupedItem {
  int64_t group, first_row, last_row, begin, end;
};

// Sums are float32; the result is rounded once. A row's bits do not depend on the rows beside it.
void grouped_linear(const GroupedLinearParams& p);

}  // namespace srt::cpu
