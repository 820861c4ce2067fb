// The sum over a token's experts, of moe.h.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/moe.h"
#include "cpu/simd.h"

namespace srt::cpu::SRT_ISA {

template <typename T>
inline void combine_token(const ExpertsParams& p, int64_t token) {
  const float* weights = p.weights + token * p.top_k;
  const int32_t* place = p.place + token * p.top_k;
  const T* rows = static_cast<const T*>(p.rows);
  const T* shared = static_cast<const T*>(p.shared);
  Vec gate = splat(1.0F);
  if (p.shared_gate != nullptr) {
    const float logit = to_float(static_cast<const T*>(p.shared_gate)[token]);
    gate = splat(1.0F) / (splat(1.0F) + exp(splat(-logit)));
  }
  T* out = static_cast<T*>(p.out) + token * p.hidden;
  for_lanes(p.hidden, [&](int64_t i, int64_t n) {
    Vec sum = splat(0.0F);
    for (int64_t k = 0; k < p.top_k; ++k) {
      sum = fma(splat(weights[k]), load_part(rows + place[k] * p.hidden + i, n), sum);
    }
    if (shared != nullptr) sum = fma(gate, load_part(shared + token * p.hidden + i, n), sum);
    store_part(out + i, sum, n);
  });
}

inline void combine(const ExpertsParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    for (int64_t t = begin; t < end; ++t) combine_token<typename decltype(tag)::type>(p, t);
  });
}

}  // namespace srt::cpu::SRT_ISA
