#include "cpu/embedding.h"

#include <cstring>

#include "core/error.h"

namespace srt::cpu {

void embedding(const EmbeddingParams& p) {
  for (int64_t i = 0; i < p.rows; ++i) {
    expect(p.ids[i] >= 0 && p.ids[i] < p.vocab, "a token id lies outside the vocabulary");
    std::memcpy(p.out + static_cast<size_t>(i) * p.row_bytes,
                p.weight + static_cast<size_t>(p.ids[i]) * p.stride_bytes, p.row_bytes);
  }
}

}  // namespace srt::cpu
