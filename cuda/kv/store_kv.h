// The store of one tensor (K, V, or MLA's latent) into its pool slots.
#pragma once

#include "common/launch.h"
#include "rope/rotary.h"

namespace srt::cuda {

struct StoreKvParams {
  HeadsView x;       // dtype [num_tokens, num_heads, head_dim]
  const int* slots;  // [num_tokens]
  void* cache;       // [num_pages, num_heads, page_size, head_dim], dtype or fp8
  int num_tokens;
  int num_heads;
  int head_dim;  // a multiple of 8
  int page_size;
  KvFormat format;
  float scale;  // fp8: stored = x / scale
  Dtype dtype;
  bool pdl;
};

[[nodiscard]] cudaError_t store_kv(const StoreKvParams& p, cudaStream_t stream);

}  // namespace srt::cuda
