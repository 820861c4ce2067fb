// The loops of activation.h, over a range of rows.
#pragma once

#include <cmath>

#include "cpu/activation.h"
#include "cpu/dispatch.h"
#include "cpu/simd.h"

namespace srt::cpu::SRT_ISA {

inline Vec silu(const Vec& x) { return x / (splat(1.0F) + exp(splat(0.0F) - x)); }

inline Vec gelu_tanh(const Vec& x) {
  const Vec inner = splat(0.7978845608F) * fma(splat(0.044715F) * x * x, x, x);  // sqrt(2 / pi)
  return splat(0.5F) * x * (splat(1.0F) + tanh(inner));
}

inline Vec gelu(const Vec& x) {
  float lanes[kLanes];
  store(lanes, x);
  for (float& lane : lanes) lane = 0.5F * lane * (1.0F + ::erff(lane * 0.70710678F));
  return load(lanes);
}

template <typename T, typename Act>
void gated_rows(const GatedParams& p, int64_t begin, int64_t end, Act&& act) {
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = static_cast<const T*>(p.x) + row * p.x_stride;
    const T* up = gate + p.size;
    T* out = static_cast<T*>(p.out) + row * p.size;
    for_lanes(p.size, [&](int64_t i, int64_t n) {
      store_part(out + i, act(load_part(gate + i, n)) * load_part(up + i, n), n);
    });
  }
}

inline void gated(const GatedParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (p.gate) {
      case Gate::kSilu:
        return gated_rows<T>(p, begin, end, [](const Vec& x) { return silu(x); });
      case Gate::kGelu:
        return gated_rows<T>(p, begin, end, [](const Vec& x) { return gelu(x); });
      case Gate::kGeluTanh:
        return gated_rows<T>(p, begin, end, [](const Vec& x) { return gelu_tanh(x); });
    }
  });
}

}  // namespace srt::cpu::SRT_ISA
