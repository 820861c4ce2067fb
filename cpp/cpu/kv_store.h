// Rotary embedding of q and k, and the store of k and v into their slots; either part may be left
// out.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"
#include "cpu/kv_format.h"

namespace srt::cpu {

// dtype: f32, bf16 or f16, of q, k and v. Strides count elements; the last dimension is contiguous.
struct KvStoreParams {
  DType dtype;
  int64_t tokens;

  void* q;  // [tokens, q_heads, head_dim] or nullptr; rotated in place
  int64_t q_heads, q_stride, q_head_stride;
  void* k;  // [tokens, kv_heads, head_dim]; rotated in place where there is no cache
  int64_t kv_heads, k_stride, k_head_stride;
  int64_t head_dim;

  const float* cos_sin;      // [max_pos, rotary_dim]: cosines, then sines; nullptr: no rotation
  const int32_t* positions;  // [tokens]
  int64_t rotary_dim;
  bool interleaved;

  const void* v;  // [tokens, kv_heads, v_head_dim] or nullptr: k alone is stored (MLA)
  int64_t v_stride, v_head_stride, v_head_dim;
  void* k_cache;         // [num_pages, kv_heads, page_size, head_dim] or nullptr: no store
  void* v_cache;         // [num_pages, kv_heads, page_size, v_head_dim]
  const int32_t* slots;  // [tokens]
  int64_t page_size;
  KvFormat format;
  float k_scale, v_scale;  // stored = x / scale
};

void kv_store(const KvStoreParams& p);

}  // namespace srt::cpu
