// Rotary embedding of q and k, with the per-head norm before and the store into the KV pool after.
#pragma once

#include "common/launch.h"

namespace srt::cuda {

enum class KvFormat : uint8_t { kSame, kE4M3, kE5M2 };

// A [num_tokens, num_heads, head_dim] view whose last dimension is contiguous.
struct HeadsView {
  void* data;
  int64_t token_stride;
  int64_t head_stride;
};

struct RotaryParams {
  HeadsView q;           // rotated in place; num_q_heads 0: none
  HeadsView k;           // rotated in place, or into the pool where k_cache is set
  HeadsView v;           // goes to the pool; read only where v_cache is set
  const int* positions;  // [num_tokens]
  const float* cos_sin;  // [max_positions, rotary_dim]: cosines, then sines
  const void* q_norm;    // dtype [head_dim] RMSNorm weight, nullptr: none
  const void* k_norm;
  const int* slots;  // [num_tokens]
  void* k_cache;  // [num_pages, num_kv_heads, page_size, head_dim], dtype or fp8; nullptr: no store
  void* v_cache;  // [num_pages, num_kv_heads, page_size, v_head_dim]
  int num_tokens;
  int num_q_heads;
  int num_kv_heads;
  int head_dim;    // a multiple of 8, up to 256
  int v_head_dim;  // a multiple of 8, up to 256
  int rotary_dim;  // even, up to head_dim; multiples of 16 are fastest
  int page_size;
  bool interleaved;
  KvFormat kv_format;
  float k_scale;  // fp8: stored = x / scale
  float v_scale;
  float norm_eps;
  float norm_offset;  // as NormParams::weight_offset
  Dtype dtype;
  bool pdl;
};

constexpr int kMaxRotaryHeadDim = 256;

[[nodiscard]] cudaError_t rotary(const RotaryParams& p, cudaStream_t stream);

}  // namespace srt::cuda
