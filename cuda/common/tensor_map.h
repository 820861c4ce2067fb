// Tensor maps for the copy engine; the driver entry point is looked up at run time (no libcuda
// link).
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/launch.h"

namespace srt::cuda {

// A row-major [rows, columns] matrix read in boxes of box_rows x 64 16-bit elements, 128-byte
// swizzle; elements outside read as zero. `stride` counts elements and must be a multiple of 8.
struct MatrixMap {
  const void* data;
  Dtype dtype;  // kF16 or kBF16
  int64_t rows;
  int64_t columns;
  int64_t stride;
  int box_rows;
};

[[nodiscard]] cudaError_t make_map(const MatrixMap& m, CUtensorMap* out);

// The same for more dimensions, innermost first and dense. 16-bit elements come in boxes of 64
// columns and swizzled, bytes in boxes of up to 256 columns as they are, or of 128 and swizzled.
struct TensorMap {
  static constexpr int kMaxDims = 5;

  const void* data;
  Dtype dtype;    // kF16 or kBF16
  bool is_bytes;  // instead of `dtype`
  int ndim;
  uint64_t dims[kMaxDims];
  uint64_t strides[kMaxDims];  // elements, multiples of 16 bytes; [0] is 1
  uint32_t box[kMaxDims];
  bool swizzle_bytes = false;
};

[[nodiscard]] cudaError_t make_tensor_map(const TensorMap& m, CUtensorMap* out);

// A row-major [rows, columns] matrix of bytes, rows `stride` apart, in boxes of box_rows x 128,
// 128-byte swizzle; bytes outside read as zero.
[[nodiscard]] cudaError_t make_byte_map(const void* data, int rows, int columns, int64_t stride,
                                        int box_rows, CUtensorMap* out);

}  // namespace srt::cuda
