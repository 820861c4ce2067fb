// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), and the
// exponential race that draws tokens: docs/contracts.md section 3.1.
#pragma once

#include <cstdint>

namespace srt::cuda {

// The four words of counter (block, position, 0, 0).
__device__ __forceinline__ uint4 philox(uint32_t block, uint32_t position, uint2 key) {
  uint32_t c0 = block;
  uint32_t c1 = position;
  uint32_t c2 = 0;
  uint32_t c3 = 0;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key.x;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key.y;
    c3 = static_cast<uint32_t>(p0);
    key.x += 0x9E3779B9u;
    key.y += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// At most v(word), and less than 2^-23 below it: enough to rule most tokens out, without a
// conversion.
__device__ __forceinline__ float uniform_below(uint32_t word) {
  return __uint_as_float(word >> 9 | 0x3f800000u) - 1.0f;
}

// -log1p(-v(word)): what a token's weight is divided by. At least v, at most 24 ln 2.
__device__ __forceinline__ float exponential(uint32_t word) {
  const double v = (static_cast<double>(word) + 0.5) * 0x1p-32;
  return -log1pf(-fminf(static_cast<float>(v), 1.0f - 0x1p-24f));
}

// Below the score that the likeliest token (weight 1) is sure of: 1 / (24 ln 2) = 0.0601.
constexpr float kSureScore = 0.06f;

}  // namespace srt::cuda
