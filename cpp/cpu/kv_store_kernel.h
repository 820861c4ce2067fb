// The loops of kv_store.h, over a range of tokens.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/kv_store.h"
#include "cpu/simd.h"

namespace srt::cpu::SRT_ISA {

// Rotates one head, x -> out (may be x): half pairs (i, i + half) or neighbours (2i, 2i + 1).
template <typename T>
void rotate_head(const T* x, T* out, const float* cos, int64_t half, bool interleaved) {
  const float* sin = cos + half;
  if (interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = to_float(x[2 * i]);
      const float b = to_float(x[2 * i + 1]);
      out[2 * i] = from_float<T>(a * cos[i] - b * sin[i]);
      out[2 * i + 1] = from_float<T>(b * cos[i] + a * sin[i]);
    }
    return;
  }
  for_lanes(half, [&](int64_t i, int64_t n) {
    const Vec a = load_part(x + i, n);
    const Vec b = load_part(x + half + i, n);
    const Vec c = load_part(cos + i, n);
    const Vec s = load_part(sin + i, n);
    store_part(out + i, a * c - b * s, n);
    store_part(out + half + i, fma(b, c, a * s), n);
  });
}

// fp8 entries go one by one: a store touches head_dim elements per token and head.
template <typename T, typename Kv>
void store_head(const T* x, Kv* out, int64_t size, float scale) {
  for (int64_t i = 0; i < size; ++i) out[i] = from_float<Kv>(to_float(x[i]) / scale);
}
template <typename T>
void store_head(const T* x, T* out, int64_t size, float /*scale*/) {
  for (int64_t i = 0; i < size; ++i) out[i] = x[i];
}

template <typename T, typename Kv>
void store_token(const KvStoreParams& p, int64_t t) {
  const int64_t page = p.slots[t] / p.page_size;
  const int64_t offset = p.slots[t] % p.page_size;
  for (int64_t h = 0; h < p.kv_heads; ++h) {
    const int64_t place = (page * p.kv_heads + h) * p.page_size + offset;
    store_head(static_cast<const T*>(p.k) + t * p.k_stride + h * p.k_head_stride,
               static_cast<Kv*>(p.k_cache) + place * p.head_dim, p.head_dim, p.k_scale);
    if (p.v == nullptr) continue;
    store_head(static_cast<const T*>(p.v) + t * p.v_stride + h * p.v_head_stride,
               static_cast<Kv*>(p.v_cache) + place * p.v_head_dim, p.v_head_dim, p.v_scale);
  }
}

template <typename T>
void rotate_token(const KvStoreParams& p, int64_t t) {
  const int64_t half = p.rotary_dim / 2;
  const float* cos = p.cos_sin + p.positions[t] * p.rotary_dim;
  for (int64_t h = 0; h < p.q_heads; ++h) {
    T* head = static_cast<T*>(p.q) + t * p.q_stride + h * p.q_head_stride;
    rotate_head(head, head, cos, half, p.interleaved);
  }
  for (int64_t h = 0; h < p.kv_heads; ++h) {
    T* head = static_cast<T*>(p.k) + t * p.k_stride + h * p.k_head_stride;
    rotate_head(head, head, cos, half, p.interleaved);
  }
}

inline void kv_store(const KvStoreParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (int64_t t = begin; t < end; ++t) {
      if (p.cos_sin != nullptr) rotate_token<T>(p, t);
      if (p.k_cache == nullptr) continue;
      if (p.format == KvFormat::kE5M2) {
        store_token<T, E5M2>(p, t);
      } else if (p.format == KvFormat::kE4M3) {
        store_token<T, E4M3>(p, t);
      } else {
        store_token<T, T>(p, t);
      }
    }
  });
}

}  // namespace srt::cpu::SRT_ISA
