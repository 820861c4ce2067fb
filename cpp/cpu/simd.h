// A vector of floats, as wide as the instruction set the file is compiled for, with loads from and
// stores to every storage type.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/scalar.h"

namespace srt::cpu::SRT_ISA {

#if defined(__AVX512F__)

struct Vec {
  __m512 v;
};
constexpr int kLanes = 16;

inline Vec splat(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const BF16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline Vec load(const F16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Vec load(const E5M2* p) {
  const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm512_cvtph_ps(_mm256_slli_epi16(wide, 8))};
}
inline Vec load(const E4M3* p) {
  const __m512i b = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m512i magnitude = _mm512_and_si512(b, _mm512_set1_epi32(0x7f));
  const __m512i half =
      _mm512_or_si512(_mm512_slli_epi32(magnitude, 7),
                      _mm512_slli_epi32(_mm512_andnot_si512(_mm512_set1_epi32(0x7f), b), 8));
  const __m512 x =
      _mm512_mul_ps(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(half)), _mm512_set1_ps(256.0F));
  const __mmask16 nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f));
  return {_mm512_mask_blend_ps(nan, x, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)))};
}
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }
inline void store(BF16* p, Vec x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
inline void store(F16* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
inline Vec round_even(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for whole n in [-126, 127].
inline Vec exp2_int(Vec n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
// a < b ? yes : no, lane by lane.
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
inline bool any_less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ) != 0; }
inline float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
// sums[i] = sum of the lanes of a[i].
inline void sum4(const Vec* a, float* sums) {
  __m128 part[4];
  for (int i = 0; i < 4; ++i) {
    const __m256 half =
        _mm256_add_ps(_mm512_castps512_ps256(a[i].v), _mm512_extractf32x8_ps(a[i].v, 1));
    part[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  }
  _MM_TRANSPOSE4_PS(part[0], part[1], part[2], part[3]);
  _mm_storeu_ps(sums, _mm_add_ps(_mm_add_ps(part[0], part[1]), _mm_add_ps(part[2], part[3])));
}
inline float max_lane(Vec a) { return _mm512_reduce_max_ps(a.v); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

#elif defined(__AVX2__)

struct Vec {
  __m256 v;
};
constexpr int kLanes = 8;

inline Vec splat(float x) { return {_mm256_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const BF16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
inline Vec load(const F16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Vec load(const E5M2* p) {
  const __m128i wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_cvtph_ps(_mm_slli_epi16(wide, 8))};
}
inline Vec load(const E4M3* p) {
  const __m128i b = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i magnitude = _mm_and_si128(b, _mm_set1_epi16(0x7f));
  const __m128i sign = _mm_slli_epi16(_mm_and_si128(b, _mm_set1_epi16(0x80)), 8);
  const __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
  // As an f16 the value is 2^8 too small; all ones is a NaN.
  const __m128i half = _mm_or_si128(nan, _mm_or_si128(sign, _mm_slli_epi16(magnitude, 7)));
  return {_mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0F))};
}
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x.v); }
inline void store(BF16* p, Vec x) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline void store(F16* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0F), a.v)}; }
inline Vec round_even(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for whole n in [-126, 127].
inline Vec exp2_int(Vec n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))};
}
// a < b ? yes : no, lane by lane.
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
inline bool any_less(Vec a, Vec b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)) != 0;
}
inline float sum(Vec a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// sums[i] = sum of the lanes of a[i].
inline void sum4(const Vec* a, float* sums) {
  const __m256 low = _mm256_hadd_ps(a[0].v, a[1].v);
  const __m256 high = _mm256_hadd_ps(a[2].v, a[3].v);
  const __m256 both = _mm256_hadd_ps(low, high);
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
}
inline float max_lane(Vec a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

#else  // portable: eight lanes, left to the compiler

struct Vec {
  float v[8];
};
constexpr int kLanes = 8;

#define SRT_LANES(expr)                             \
  Vec out;                                          \
  for (int i = 0; i < kLanes; ++i) out.v[i] = expr; \
  return out

inline Vec splat(float x) { SRT_LANES(x); }
template <typename T>
inline Vec load(const T* p) {
  SRT_LANES(to_float(p[i]));
}
template <typename T>
inline void store(T* p, const Vec& x) {
  for (int i = 0; i < kLanes; ++i) p[i] = from_float<T>(x.v[i]);
}
inline Vec operator+(const Vec& a, const Vec& b) { SRT_LANES(a.v[i] + b.v[i]); }
inline Vec operator-(const Vec& a, const Vec& b) { SRT_LANES(a.v[i] - b.v[i]); }
inline Vec operator*(const Vec& a, const Vec& b) { SRT_LANES(a.v[i] * b.v[i]); }
inline Vec operator/(const Vec& a, const Vec& b) { SRT_LANES(a.v[i] / b.v[i]); }
inline Vec fma(const Vec& a, const Vec& b, const Vec& c) { SRT_LANES(a.v[i] * b.v[i] + c.v[i]); }
inline Vec max(const Vec& a, const Vec& b) { SRT_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline Vec min(const Vec& a, const Vec& b) { SRT_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline Vec abs(const Vec& a) { SRT_LANES(a.v[i] < 0.0F ? -a.v[i] : a.v[i]); }
// Exact for |a| < 2^22: all that exp asks for.
inline Vec round_even(const Vec& a) { SRT_LANES((a.v[i] + 0x1.8p23F) - 0x1.8p23F); }
// 2^n for whole n in [-126, 127].
inline Vec exp2_int(const Vec& n) {
  SRT_LANES(std::bit_cast<float>(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23));
}
// a < b ? yes : no, lane by lane.
inline Vec where_less(const Vec& a, const Vec& b, const Vec& yes, const Vec& no) {
  SRT_LANES(a.v[i] < b.v[i] ? yes.v[i] : no.v[i]);
}
inline bool any_less(const Vec& a, const Vec& b) {
  bool any = false;
  for (int i = 0; i < kLanes; ++i) any |= a.v[i] < b.v[i];
  return any;
}
inline float sum(const Vec& a) {
  return ((a.v[0] + a.v[4]) + (a.v[2] + a.v[6])) + ((a.v[1] + a.v[5]) + (a.v[3] + a.v[7]));
}
// sums[i] = sum of the lanes of a[i].
inline void sum4(const Vec* a, float* sums) {
  for (int i = 0; i < 4; ++i) sums[i] = sum(a[i]);
}
inline float max_lane(const Vec& a) {
  float most = a.v[0];
  for (int i = 1; i < kLanes; ++i) most = a.v[i] > most ? a.v[i] : most;
  return most;
}
inline void prefetch(const void* p) { __builtin_prefetch(p); }
#undef SRT_LANES

#endif

// The first n < kLanes elements; the other lanes are zero.
template <typename T>
inline Vec load_n(const T* p, int64_t n) {
  T padded[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
}
template <typename T>
inline void store_n(T* p, const Vec& x, int64_t n) {
  T padded[kLanes];
  store(padded, x);
  for (int64_t i = 0; i < n; ++i) p[i] = padded[i];
}

// Calls step(i, n) for every vector of [0, size): n is kLanes but for the last.
template <typename F>
inline void for_lanes(int64_t size, F&& step) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) step(i, static_cast<int64_t>(kLanes));
  if (i < size) step(i, size - i);
}
template <typename T>
inline Vec load_part(const T* p, int64_t n) {
  return n == kLanes ? load(p) : load_n(p, n);
}
template <typename T>
inline void store_part(T* p, const Vec& x, int64_t n) {
  if (n == kLanes) {
    store(p, x);
  } else {
    store_n(p, x, n);
  }
}

// e^x within 2 ulp; 0 below -87.3, 2.4e38 above 88.37. Range reduction and polynomial after Cephes.
inline Vec exp(const Vec& x) {
  const Vec low = splat(-87.3365F);
  const Vec clamped = max(min(x, splat(88.3762F)), low);
  const Vec n = round_even(clamped * splat(1.44269504F));
  Vec r = fma(n, splat(-0.693359375F), clamped);
  r = fma(n, splat(2.12194440e-4F), r);
  Vec p = splat(1.9875691500e-4F);
  p = fma(p, r, splat(1.3981999507e-3F));
  p = fma(p, r, splat(8.3334519073e-3F));
  p = fma(p, r, splat(4.1665795894e-2F));
  p = fma(p, r, splat(1.6666665459e-1F));
  p = fma(p, r, splat(5.0000001201e-1F));
  p = fma(p, r * r, r) + splat(1.0F);
  return where_less(x, low, splat(0.0F), p * exp2_int(n));
}

// tanh within 2 ulp: Cephes' polynomial near zero, else through e^2|x|.
inline Vec tanh(const Vec& x) {
  const Vec size = abs(x);
  const Vec far = splat(1.0F) - splat(2.0F) / (exp(size + size) + splat(1.0F));
  const Vec z = x * x;
  Vec p = splat(-5.70498872745e-3F);
  p = fma(p, z, splat(2.06390887954e-2F));
  p = fma(p, z, splat(-5.37397155531e-2F));
  p = fma(p, z, splat(1.33314422036e-1F));
  p = fma(p, z, splat(-3.33332819422e-1F));
  const Vec near = fma(p * z, x, x);
  const Vec signed_far = where_less(x, splat(0.0F), splat(0.0F) - far, far);
  return where_less(size, splat(0.625F), near, signed_far);
}

}  // namespace srt::cpu::SRT_ISA
