// One warp's arithmetic on a KV tile in shared memory: scores, online softmax, output.
//
// Scores are formed as S = Q K^T with the query heads on the 16 rows of m16n8k16, so that a head's
// scores lie within four lanes; the output as O^T = V^T P^T with the heads on its 8 columns, so
// that eight or fewer heads cost half the registers and the scores are that product's B operand as
// they stand. fp8 values are widened to fp16 in registers, which holds them exactly.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "attention/plan.h"
#include "common/fp8.cuh"
#include "common/launch.h"
#include "common/mma.cuh"
#include "common/ptx.cuh"

namespace srt::cuda::decode {

constexpr unsigned kFullWarp = 0xffffffffu;

// What the pool holds; fp8 pools are read by bf16 and fp16 queries alike.
enum class KvKind : uint8_t { kBF16, kF16, kE4M3, kE5M2 };

// A specialization: kHeadTiles * 8 query heads at most share a KV head.
template <KvKind kKindV, int kHeadDimV, int kHeadTilesV, int kTokensV, int kWarpsV, int kStagesV,
          int kCtasV>
struct Shape {
  static constexpr KvKind kKind = kKindV;
  static constexpr int kHeadDim = kHeadDimV;
  static constexpr int kHeadTiles = kHeadTilesV;
  static constexpr int kTokens = kTokensV;  // of a tile
  static constexpr int kWarps = kWarpsV;
  static constexpr int kStages = kStagesV;
  static constexpr int kCtasPerSm = kCtasV;
  static constexpr int kThreads = kWarps * 32;
  static constexpr bool kFp8 = kKind == KvKind::kE4M3 || kKind == KvKind::kE5M2;
  using Mma = std::conditional_t<kKind == KvKind::kBF16, __nv_bfloat16, __half>;

  static constexpr int kDimTiles = kHeadDim / 16;
  static constexpr int kSubTiles = kTokens / 16;
  static constexpr int kChunks = kHeadDim * (kFp8 ? 1 : 2) / 16;  // 16-byte pieces of a row
  // An odd number of pieces between rows: ldmatrix meets no bank twice.
  static constexpr int kRowStride = (kChunks | 1) * 16;
  static constexpr int kTileBytes = kTokens * kRowStride;
  // Two stages, which prefix units have in any case.
  static constexpr int kRingBytes = kWarps * 2 * 2 * kTileBytes;
  static constexpr int kMergeStride = kHeadDim + 4;  // floats between heads; no bank conflicts
  // Prefix units: 16 rows a warp. Other head dims are not worth their compile time.
  static constexpr bool kCanShare = kHeadDim == 64 || kHeadDim == 128;
  static constexpr int kShareRows = kCanShare ? 16 * kWarps : 0;

  static_assert(kHeadDim % 16 == 0 && (kHeadTiles == 1 || kHeadTiles == 2));
  static_assert(kTokens == 16 || kTokens == 32 || kTokens == 64);
  static_assert(kStages == 1 || kStages == 2);
};

// The block's queries as the A operand: rows 8..15 exist with two head tiles only.
template <typename S>
struct Queries {
  uint32_t a[S::kDimTiles][2 * S::kHeadTiles];
};

// A tile's scores. s[n][2 h + e]: head g + 8 h with token 8 n + 2 t + e, g = lane / 4, t = lane
// % 4.
template <typename S>
struct Scores {
  static constexpr int kCols = 2 * S::kSubTiles;
  float s[kCols][4];

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int n = 0; n < kCols; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) s[n][e] = 0.0f;
  }
};

// Probabilities as the B operand: p[h][n] holds head g + 8 h by tokens 8 n + 2 t, 8 n + 2 t + 1.
template <typename S>
struct Probs {
  uint32_t p[S::kHeadTiles][2 * S::kSubTiles];
};

// A warp's running result. With g = lane / 4 and t = lane % 4: m and l belong to head g (+ 8) and l
// is a partial sum over the lane's own tokens; o[j][h] holds dims of tile j by heads 2t, 2t + 1.
template <typename S>
struct Running {
  float m[S::kHeadTiles];
  float l[S::kHeadTiles];
  float o[S::kDimTiles][S::kHeadTiles][4];

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int h = 0; h < S::kHeadTiles; ++h) {
      m[h] = -INFINITY;
      l[h] = 0.0f;
#pragma unroll
      for (int j = 0; j < S::kDimTiles; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) o[j][h][e] = 0.0f;
    }
  }
};

// Bytes kFirst and kSecond of four fp8 values as a pair of halves.
template <KvKind kKind, int kFirst, int kSecond>
__device__ __forceinline__ uint32_t widen(uint32_t x) {
  if constexpr (kKind == KvKind::kE5M2) {  // the upper byte of the same half
    return __byte_perm(x, 0, 0x0404 | kFirst << 4 | kSecond << 12);
  } else {
    const auto pair = static_cast<uint16_t>(__byte_perm(x, 0, 0x4400 | kFirst | kSecond << 4));
    const __half2 halves = fp8x2_to_half2<Fp8::kE4M3>(pair);
    return reinterpret_cast<const uint32_t&>(halves);
  }
}

// One of the lane's query rows, g + 8 h; null: zeros. The order of the dims within a step of 16 is
// free as long as K has the same: with fp8, a lane's four bytes are neighbours.
template <typename S>
__device__ __forceinline__ void load_query_row(Queries<S>& out, int h, const uint16_t* row,
                                               int lane) {
  const int t = lane & 3;
  const auto* lo = row + (S::kFp8 ? 4 * t : 2 * t);
  const auto* hi = lo + (S::kFp8 ? 2 : 8);
#pragma unroll
  for (int j = 0; j < S::kDimTiles; ++j) {
    out.a[j][h] = row != nullptr ? *reinterpret_cast<const uint32_t*>(lo + 16 * j) : 0u;
    out.a[j][S::kHeadTiles + h] =
        row != nullptr ? *reinterpret_cast<const uint32_t*>(hi + 16 * j) : 0u;
  }
}

// q: the block's first query head; heads from num_heads on are zero.
template <typename S>
__device__ __forceinline__ void load_queries(Queries<S>& out, const void* q, int num_heads,
                                             int lane) {
#pragma unroll
  for (int h = 0; h < S::kHeadTiles; ++h) {
    const int head = (lane >> 2) + 8 * h;
    const auto* row = static_cast<const uint16_t*>(q) + head * S::kHeadDim;
    load_query_row(out, h, head < num_heads ? row : nullptr, lane);
  }
}

// bf16 queries of an fp8 pool become fp16, which has room for more digits but not for all sizes.
template <typename S>
__device__ __forceinline__ void convert_queries(Queries<S>& q, bool is_bf16) {
  if (!S::kFp8 || !is_bf16) return;
  constexpr float kMax = 65504.0f;
#pragma unroll
  for (int j = 0; j < S::kDimTiles; ++j)
#pragma unroll
    for (int e = 0; e < 2 * S::kHeadTiles; ++e) {
      const float lo = __uint_as_float(q.a[j][e] << 16);
      const float hi = __uint_as_float(q.a[j][e] & 0xffff0000u);
      q.a[j][e] =
          ptx::pack_pair<__half>(fminf(fmaxf(lo, -kMax), kMax), fminf(fmaxf(hi, -kMax), kMax));
    }
}

// Where a lane's ldmatrix rows begin within a tile: tokens 0-7 and 8-15, two 16-byte pieces each.
template <typename S>
__device__ __forceinline__ uint32_t fragment_offset(int lane) {
  return static_cast<uint32_t>(((lane & 7) + ((lane >> 4) << 3)) * S::kRowStride +
                               ((lane >> 3) & 1) * 16);
}

template <typename S>
__device__ __forceinline__ void score_step(float* s, const Queries<S>& q, int j, uint32_t k_lo,
                                           uint32_t k_hi) {
  uint32_t a[4];
  if constexpr (S::kHeadTiles == 2) {
#pragma unroll
    for (int e = 0; e < 4; ++e) a[e] = q.a[j][e];
  } else {
    a[0] = q.a[j][0];
    a[1] = 0;
    a[2] = q.a[j][1];
    a[3] = 0;
  }
  ptx::mma_m16n8k16<typename S::Mma>(s, a, k_lo, k_hi);
}

// A tile as ldmatrix reads it: 16 tokens by 32 bytes of their rows at a time. Matrix m brings the
// tokens of sub-tile m % kSubTiles and the dims from tile matrix_dims() on.
template <typename S>
constexpr int kDimStep = S::kFp8 ? 2 : 1;
template <typename S>
constexpr int kMatrices = S::kSubTiles * ((S::kDimTiles + kDimStep<S> - 1) / kDimStep<S>);

template <typename S>
__device__ constexpr int matrix_dims(int m) {
  return m / S::kSubTiles * kDimStep<S>;
}

template <typename S>
__device__ constexpr uint32_t matrix_offset(int m) {
  return m % S::kSubTiles * 16 * S::kRowStride + m / S::kSubTiles * 32;
}

// Some of a tile's matrices in registers. Where all have room, the tile is read at once: the reads
// do not wait for each other, and its place in the ring is free before the products begin.
template <typename S, int kCount = kMatrices<S>>
struct Fragments {
  uint32_t r[kCount][4];
};

// `tile`: fragment_offset() into the K tile. first: the matrix that f begins with.
template <typename S, int kCount>
__device__ __forceinline__ void load_keys(Fragments<S, kCount>& f, uint32_t tile, int first = 0) {
#pragma unroll
  for (int m = 0; m < kCount; ++m) ptx::ldmatrix_x4(f.r[m], tile + matrix_offset<S>(first + m));
}

// The same of the V tile.
template <typename S, int kCount>
__device__ __forceinline__ void load_values(Fragments<S, kCount>& f, uint32_t tile, int first = 0) {
#pragma unroll
  for (int m = 0; m < kCount; ++m)
    ptx::ldmatrix_x4_trans(f.r[m], tile + matrix_offset<S>(first + m));
}

// s += Q K^T.
template <typename S, int kCount>
__device__ __forceinline__ void score(Scores<S>& out, const Queries<S>& q,
                                      const Fragments<S, kCount>& f, int first = 0) {
#pragma unroll
  for (int m = 0; m < kCount; ++m) {
    const uint32_t (&r)[4] = f.r[m];
    const int j = matrix_dims<S>(first + m);
    const int i = (first + m) % S::kSubTiles;
    float* low = out.s[2 * i];       // tokens 0-7 of the sub-tile
    float* high = out.s[2 * i + 1];  // tokens 8-15
    if constexpr (S::kFp8) {
      score_step(low, q, j, widen<S::kKind, 0, 1>(r[0]), widen<S::kKind, 2, 3>(r[0]));
      score_step(high, q, j, widen<S::kKind, 0, 1>(r[2]), widen<S::kKind, 2, 3>(r[2]));
      if (j + 1 == S::kDimTiles) continue;
      score_step(low, q, j + 1, widen<S::kKind, 0, 1>(r[1]), widen<S::kKind, 2, 3>(r[1]));
      score_step(high, q, j + 1, widen<S::kKind, 0, 1>(r[3]), widen<S::kKind, 2, 3>(r[3]));
    } else {
      score_step(low, q, j, r[0], r[1]);
      score_step(high, q, j, r[2], r[3]);
    }
  }
}

// Hides tokens of the tile outside [lo, hi).
template <typename S>
__device__ __forceinline__ void mask_tile(Scores<S>& x, int2 visible, int lane) {
#pragma unroll
  for (int n = 0; n < x.kCols; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int token = 8 * n + 2 * (lane & 3) + (e & 1);
      if (token < visible.x || token >= visible.y) x.s[n][e] = -INFINITY;
    }
}

// s -> softcap * tanh(s * scale / softcap); tanh(x) = 1 - 2 / (1 + e^2x).
template <typename S>
__device__ __forceinline__ void cap_tile(Scores<S>& x, float scale, float softcap) {
  constexpr float kTwoLog2E = 2.885390081777927f;
  const float inner = scale / softcap * kTwoLog2E;
#pragma unroll
  for (int n = 0; n < x.kCols; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float grown = ptx::exp2_approx(fminf(x.s[n][e] * inner, 80.0f));
      x.s[n][e] = softcap * (1.0f - __fdividef(2.0f, 1.0f + grown));
    }
}

template <typename S>
__device__ __forceinline__ void rescale(Running<S>& run, const float (&alpha)[S::kHeadTiles],
                                        int lane) {
#pragma unroll
  for (int h = 0; h < S::kHeadTiles; ++h) {
    const float even = __shfl_sync(kFullWarp, alpha[h], 8 * (lane & 3));
    const float odd = __shfl_sync(kFullWarp, alpha[h], 8 * (lane & 3) + 4);
    run.l[h] *= alpha[h];
#pragma unroll
    for (int j = 0; j < S::kDimTiles; ++j) {
      run.o[j][h][0] *= even;
      run.o[j][h][1] *= odd;
      run.o[j][h][2] *= even;
      run.o[j][h][3] *= odd;
    }
  }
}

// Turns scores into probabilities 2^(scale * (s - m)).
template <typename S>
__device__ __forceinline__ void online_softmax(Running<S>& run, const Scores<S>& x, float scale,
                                               Probs<S>& out, int lane) {
  float alpha[S::kHeadTiles];
  bool grew = false;
#pragma unroll
  for (int h = 0; h < S::kHeadTiles; ++h) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < x.kCols; ++n) top = fmaxf(top, fmaxf(x.s[n][2 * h], x.s[n][2 * h + 1]));
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
    const float m = fmaxf(run.m[h], top);
    grew |= m > run.m[h];
    alpha[h] = ptx::exp2_approx((run.m[h] - m) * scale);
    run.m[h] = m;
  }
  if (__any_sync(kFullWarp, grew)) rescale(run, alpha, lane);
#pragma unroll
  for (int h = 0; h < S::kHeadTiles; ++h) {
    const float shift = -run.m[h] * scale;
#pragma unroll
    for (int n = 0; n < x.kCols; ++n) {
      const float first = ptx::exp2_approx(fmaf(x.s[n][2 * h], scale, shift));
      const float second = ptx::exp2_approx(fmaf(x.s[n][2 * h + 1], scale, shift));
      run.l[h] += first + second;
      out.p[h][n] = ptx::pack_pair<typename S::Mma>(first, second);
    }
  }
}

// o += V^T P^T. With fp8, rows g and g + 8 of a product are the neighbouring dims 2g and 2g + 1.
template <typename S, int kCount>
__device__ __forceinline__ void accumulate(Running<S>& run, const Probs<S>& probs,
                                           const Fragments<S, kCount>& f, int first = 0) {
#pragma unroll
  for (int m = 0; m < kCount; ++m) {
    const uint32_t (&r)[4] = f.r[m];
    const int i = (first + m) % S::kSubTiles;
#pragma unroll
    for (int e = 0; e < kDimStep<S>; ++e) {
      const int j = matrix_dims<S>(first + m) + e;
      if (j >= S::kDimTiles) continue;
      uint32_t a[4] = {r[0], r[1], r[2], r[3]};
      if constexpr (S::kFp8) {
        a[0] = widen<S::kKind, 0, 2>(r[e]);
        a[1] = widen<S::kKind, 1, 3>(r[e]);
        a[2] = widen<S::kKind, 0, 2>(r[2 + e]);
        a[3] = widen<S::kKind, 1, 3>(r[2 + e]);
      }
#pragma unroll
      for (int h = 0; h < S::kHeadTiles; ++h)
        ptx::mma_m16n8k16<typename S::Mma>(run.o[j][h], a, probs.p[h][2 * i],
                                           probs.p[h][2 * i + 1]);
    }
  }
}

// The dim within tile j that row `g` (+ 8) of the output product stands for.
template <typename S>
__device__ __forceinline__ int output_dim(int j, int g, bool upper) {
  return 16 * j + (S::kFp8 ? 2 * g + (upper ? 1 : 0) : g + (upper ? 8 : 0));
}

}  // namespace srt::cuda::decode
