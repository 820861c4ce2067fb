// What the paged attention kernels are told: the KV pool and the way to a sequence's pages.
#pragma once

#include <cstdint>

#include "common/launch.h"

namespace srt::cuda {

enum class KvDtype : uint8_t { kSame, kE4M3, kE5M2 };  // kSame: the dtype of the queries

// One layer's pool. Slots of a page are neighbours: [num_pages, num_kv_heads, page_size, dim].
struct KvPool {
  const void* k = nullptr;  // dim = head_dim
  const void* v = nullptr;  // dim = head_dim_v
  KvDtype dtype = KvDtype::kSame;
  float k_scale = 1.0f;  // fp8 only: k = stored * k_scale
  float v_scale = 1.0f;
  int num_pages = 0;
  int num_kv_heads = 0;
  int log2_page_size = 0;
  int head_dim = 0;
  int head_dim_v = 0;
};

// Which keys a query sees and how scores are formed: s = softcap(scale * q.k).
struct Scoring {
  float scale = 1.0f;
  float softcap = 0.0f;  // > 0: s -> softcap * tanh(s / softcap)
  bool causal = true;    // keys after the query's own position are hidden
  int window_left = -1;  // >= 0: so are keys more than window_left positions before it
};

}  // namespace srt::cuda
