// The 16- and 8-bit floats as storage types, and their conversions. Compiled once per instruction
// set: everything lives in that set's namespace, so the linker never mixes the copies.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__AMX_BF16__)
#define SRT_ISA amx
#elif defined(__AVX512F__)
#define SRT_ISA avx512
#elif defined(__AVX2__)
#define SRT_ISA avx2
#else
#define SRT_ISA portable
#endif

namespace srt::cpu::SRT_ISA {

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
struct E5M2 {
  uint8_t bits;
};
struct E4M3 {
  uint8_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(BF16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

inline float to_float(F16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000U) << 16;
  const uint32_t magnitude = x.bits & 0x7fffU;
  if (magnitude >= 0x7c00U) {  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7f800000U | (magnitude & 0x3ffU) << 13);
  }
  // The exponent field lands 112 too low; the product repairs it, subnormals included, exactly.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | sign);
}

inline float to_float(E5M2 x) { return to_float(F16{static_cast<uint16_t>(x.bits << 8)}); }

inline float to_float(E4M3 x) {
  const uint32_t magnitude = x.bits & 0x7fU;
  if (magnitude == 0x7fU) return std::bit_cast<float>(0x7fc00000U);
  const auto half = static_cast<uint16_t>((x.bits & 0x80U) << 8 | magnitude << 7);
  return to_float(F16{half}) * 256.0F;  // exponent bias 7 against 15
}

// Rounds |x| to a float of `mantissa` bits whose smallest normal is 2^min_exponent: to nearest,
// ties to even. Returns the magnitude's bits, exponent bias 1 - min_exponent.
inline uint32_t round_magnitude(float x, int mantissa, int min_exponent) {
  const uint32_t bits = std::bit_cast<uint32_t>(x) & 0x7fffffffU;
  const int exponent = static_cast<int>(bits >> 23) - 127;
  if (exponent < min_exponent) {
    // Adding 2^(min_exponent - mantissa + 23) leaves a subnormal's bits, rounded, at the bottom.
    const auto magic_exponent = static_cast<uint32_t>(127 + min_exponent - mantissa + 23);
    const float magic = std::bit_cast<float>(magic_exponent << 23);
    const float sum = std::bit_cast<float>(bits) + magic;
    return std::bit_cast<uint32_t>(sum) - std::bit_cast<uint32_t>(magic);
  }
  const int dropped = 23 - mantissa;
  const uint32_t half = (1U << (dropped - 1)) - 1U + ((bits >> dropped) & 1U);
  const auto rebias = static_cast<uint32_t>(127 + min_exponent - 1) << 23;
  return (bits - rebias + half) >> dropped;
}

template <typename T>
T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline BF16 from_float<BF16>(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return {static_cast<uint16_t>(bits >> 16 | 0x40U)};
  return {static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16)};
}
template <>
inline F16 from_float<F16>(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 16 & 0x8000U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return {static_cast<uint16_t>(sign | 0x7e00U)};
  if (magnitude >= 0x47800000U) return {static_cast<uint16_t>(sign | 0x7c00U)};  // >= 2^16
  return {static_cast<uint16_t>(sign | round_magnitude(x, 10, -14))};
}
// fp8 saturates: a KV entry out of range becomes the largest number, not infinity.
template <>
inline E5M2 from_float<E5M2>(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 24 & 0x80U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return {static_cast<uint8_t>(sign | 0x7fU)};
  if (magnitude >= 0x47600000U) return {static_cast<uint8_t>(sign | 0x7bU)};  // >= 57344
  const uint32_t rounded = round_magnitude(x, 2, -14);
  return {static_cast<uint8_t>(sign | (rounded < 0x7bU ? rounded : 0x7bU))};
}
template <>
inline E4M3 from_float<E4M3>(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 24 & 0x80U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return {static_cast<uint8_t>(sign | 0x7fU)};
  if (magnitude >= 0x43e00000U) return {static_cast<uint8_t>(sign | 0x7eU)};  // >= 448
  return {static_cast<uint8_t>(sign | round_magnitude(x, 3, -6))};
}

}  // namespace srt::cpu::SRT_ISA
