// Rows of the embedding matrix by token id.
#pragma once

#include <cstddef>
#include <cstdint>

namespace srt::cpu {

struct EmbeddingParams {
  const int32_t* ids;  // [rows]
  int64_t rows;
  const char* weight;  // [vocab] rows of row_bytes, stride_bytes apart
  int64_t vocab;
  size_t row_bytes, stride_bytes;
  char* out;  // [rows] rows, dense
};

// Throws InvalidArgument for an id outside [0, vocab).
void embedding(const EmbeddingParams& p);

}  // namespace srt::cpu
