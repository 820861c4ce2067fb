// Passes of sampling over the vocabulary.
#pragma once

#include <cmath>

#include "cpu/dispatch.h"
#include "cpu/sample.h"
#include "cpu/simd.h"

namespace srt::cpu::SRT_ISA {

template <typename T>
float max_of(const T* x, int64_t size) {
  Vec most = splat(to_float(x[0]));
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) most = max(most, load(x + i));
  float result = max_lane(most);
  for (; i < size; ++i) {
    const float value = to_float(x[i]);
    result = value > result ? value : result;
  }
  return result;
}

// The first largest.
inline int32_t argmax(DType dtype, const void* x, int64_t size) {
  int64_t found = 0;
  with_type(dtype, [&](auto tag) {
    const auto* values = static_cast<const typename decltype(tag)::type*>(x);
    const float most = max_of(values, size);
    while (found + 1 < size && to_float(values[found]) != most) ++found;
  });
  return static_cast<int32_t>(found);
}

// x /= temperature; weights = e^(x - max x). Returns max x.
inline float temper(float* x, int64_t size, float temperature, float* weights) {
  const Vec divisor = splat(temperature);
  for_lanes(size,
            [&](int64_t i, int64_t n) { store_part(x + i, load_part(x + i, n) / divisor, n); });
  const float most = max_of(x, size);
  for_lanes(size, [&](int64_t i, int64_t n) {
    store_part(weights + i, exp(load_part(x + i, n) - splat(most)), n);
  });
  return most;
}

constexpr int kRaceBlocks = 16;  // Philox blocks at a time, four words each

// words[4 * b + w] = word w of Philox4x32-10 at counter (first + b, position, 0, 0).
inline void philox(uint32_t first, uint32_t position, uint32_t seed_lo, uint32_t seed_hi,
                   uint32_t* words) {
  uint32_t c[4][kRaceBlocks];
  for (int b = 0; b < kRaceBlocks; ++b) {
    c[0][b] = first + static_cast<uint32_t>(b);
    c[1][b] = position;
    c[2][b] = 0;
    c[3][b] = 0;
  }
  for (int round = 0; round < 10; ++round) {
    for (int b = 0; b < kRaceBlocks; ++b) {
      const uint64_t p0 = static_cast<uint64_t>(c[0][b]) * 0xD2511F53U;
      const uint64_t p1 = static_cast<uint64_t>(c[2][b]) * 0xCD9E8D57U;
      c[0][b] = static_cast<uint32_t>(p1 >> 32) ^ c[1][b] ^ seed_lo;
      c[1][b] = static_cast<uint32_t>(p1);
      c[2][b] = static_cast<uint32_t>(p0 >> 32) ^ c[3][b] ^ seed_hi;
      c[3][b] = static_cast<uint32_t>(p0);
    }
    seed_lo += 0x9E3779B9U;
    seed_hi += 0xBB67AE85U;
  }
  for (int b = 0; b < kRaceBlocks; ++b) {
    for (int w = 0; w < 4; ++w) words[4 * b + w] = c[w][b];
  }
}

// The token of the least e / weight, the first of equals, for exponentials e = -log1p(-v).
//
// e >= v, so a token whose v / weight already loses needs no logarithm; words are drawn only for
// stretches with some weight.
inline int32_t race(const float* weights, int64_t size, uint32_t seed_lo, uint32_t seed_hi,
                    uint32_t position) {
  constexpr int64_t kStretch = 4 * kRaceBlocks;
  int64_t winner = 0;
  float best = __builtin_huge_valf();
  uint32_t words[kStretch];
  for (int64_t begin = 0; begin < size; begin += kStretch) {
    const int64_t end = begin + kStretch < size ? begin + kStretch : size;
    if (max_of(weights + begin, end - begin) <= 0.0F) continue;
    philox(static_cast<uint32_t>(begin / 4), position, seed_lo, seed_hi, words);
    for (int64_t i = begin; i < end; ++i) {
      const auto word = static_cast<double>(words[i - begin]);
      const auto drawn = static_cast<float>((word + 0.5) * 0x1p-32);
      const float v = drawn < 1.0F - 0x1p-24F ? drawn : 1.0F - 0x1p-24F;
      if (weights[i] <= 0.0F || v > best * weights[i]) continue;
      const float time = -std::log1p(-v) / weights[i];
      if (time < best) {
        best = time;
        winner = i;
      }
    }
  }
  return static_cast<int32_t>(winner);
}

inline void token_logprobs(const LogprobParams& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto tag) {
    for (int64_t row = begin; row < end; ++row) {
      const auto* x =
          static_cast<const typename decltype(tag)::type*>(p.logits) + row * p.logits_stride;
      const float most = max_of(x, p.vocab);
      Vec total = splat(0.0F);
      float rest = 0.0F;
      for_lanes(p.vocab, [&](int64_t i, int64_t n) {
        if (n == kLanes) {
          total = total + exp(load(x + i) - splat(most));
          return;
        }
        for (int64_t j = i; j < i + n; ++j) rest += std::exp(to_float(x[j]) - most);
      });
      p.logprobs[row] = to_float(x[p.tokens[row]]) - most - std::log(sum(total) + rest);
    }
  });
}

}  // namespace srt::cpu::SRT_ISA
