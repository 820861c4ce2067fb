// The loops of norm.h, over a range of rows.
#pragma once

#include <cmath>

#include "cpu/dispatch.h"
#include "cpu/norm.h"
#include "cpu/simd.h"

namespace srt::cpu::SRT_ISA {

// residual = round(residual + x), elementwise.
template <typename T>
void add_row(const T* x, T* residual, int64_t size) {
  for_lanes(size, [&](int64_t i, int64_t n) {
    store_part(residual + i, load_part(residual + i, n) + load_part(x + i, n), n);
  });
}

template <typename T>
float mean_square(const T* x, int64_t size) {
  Vec even = splat(0.0F);
  Vec odd = splat(0.0F);
  int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
    const Vec a = load(x + i);
    const Vec b = load(x + i + kLanes);
    even = fma(a, a, even);
    odd = fma(b, b, odd);
  }
  for (; i < size; i += kLanes) {
    const Vec a = load_part(x + i, size - i < kLanes ? size - i : kLanes);
    even = fma(a, a, even);
  }
  return sum(even + odd) / static_cast<float>(size);
}

template <typename T>
void rms_norm_row(const T* x, const T* weight, T* out, const RmsNormParams& p) {
  const Vec scale = splat(1.0F / std::sqrt(mean_square(x, p.size) + p.eps));
  if (p.weight_offset == 0.0F) {
    for_lanes(p.size, [&](int64_t i, int64_t n) {
      T rounded[kLanes];  // Llama rounds before the weight
      store(rounded, load_part(x + i, n) * scale);
      store_part(out + i, load(rounded) * load_part(weight + i, n), n);
    });
    return;
  }
  const Vec offset = splat(p.weight_offset);
  for_lanes(p.size, [&](int64_t i, int64_t n) {
    const Vec gain = load_part(weight + i, n) + offset;
    store_part(out + i, load_part(x + i, n) * scale * gain, n);
  });
}

template <typename T>
void rms_norm_rows(const RmsNormParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(p.x) + p.x_rows.offset(row);
    if (p.residual != nullptr) {
      T* residual = static_cast<T*>(p.residual) + row * p.size;
      add_row(x, residual, p.size);
      x = residual;
    }
    T* out = static_cast<T*>(p.out) + p.out_rows.offset(row);
    rms_norm_row(x, static_cast<const T*>(p.weight), out, p);
  }
}

// Deviations are taken from a rounded mean and corrected by their own mean: what the rounding of
// the first lost comes back.
template <typename T>
void layer_norm_row(const T* x, T* out, const LayerNormParams& p) {
  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  const auto size = static_cast<float>(p.size);
  Vec total = splat(0.0F);
  for_lanes(p.size, [&](int64_t i, int64_t n) { total = total + load_part(x + i, n); });
  const float mean = sum(total) / size;
  Vec deviations = splat(0.0F);
  Vec squares = splat(0.0F);
  for_lanes(p.size, [&](int64_t i, int64_t n) {
    float d[kLanes];
    store(d, load_part(x + i, n) - splat(mean));
    const Vec deviation = load_part(d, n);  // zero beyond the row
    deviations = deviations + deviation;
    squares = fma(deviation, deviation, squares);
  });
  const float correction = sum(deviations) / size;
  const float variance = sum(squares) / size - correction * correction;
  const Vec scale = splat(1.0F / std::sqrt(variance + p.eps));
  for_lanes(p.size, [&](int64_t i, int64_t n) {
    const Vec shift = bias == nullptr ? splat(0.0F) : load_part(bias + i, n);
    const Vec normed = (load_part(x + i, n) - splat(mean) - splat(correction)) * scale;
    store_part(out + i, fma(normed, load_part(weight + i, n), shift), n);
  });
}

inline void rms_norm(const RmsNormParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) { rms_norm_rows<typename decltype(tag)::type>(p, begin, end); });
}

inline void layer_norm(const LayerNormParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (int64_t row = begin; row < end; ++row) {
      layer_norm_row(static_cast<const T*>(p.x) + row * p.x_stride,
                     static_cast<T*>(p.out) + row * p.size, p);
    }
  });
}

}  // namespace srt::cpu::SRT_ISA
