// From sums to y: scales, bias, gating, and e4m3 by a given scale or with one for each 128 columns.
#pragma once

#include "common/fp8_rows.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/skinny_fp8_layout.cuh"
#include "gemm/skinny_fp8_sums.cuh"

namespace srt::cuda::skinny_fp8 {

// Hands this thread's accumulators to `store(row of the tile, row of x, value)`.
template <int kM, typename Store>
__device__ __forceinline__ void scatter(const float (&acc)[kM / 2], Store store) {
  const int row = fragment_row();
#pragma unroll
  for (int j = 0; j < kM / 8; ++j) {
    const int col = 8 * j + static_cast<int>(threadIdx.x) % 4 * 2;
    store(row, col, acc[4 * j]);
    store(row, col + 1, acc[4 * j + 1]);
    store(row + 8, col, acc[4 * j + 2]);
    store(row + 8, col + 1, acc[4 * j + 3]);
  }
}

// Eight output columns at once.
__device__ __forceinline__ void store8(const Args& a, const float (&v)[8], int row, int col) {
  if (a.y_scale != nullptr) {
    const float inverse = 1.0f / __ldg(a.y_scale);
    float scaled[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) scaled[i] = gemm::round_to<Out>(v[i]) * inverse;
    store_fp8_vec<Fp8::kE4M3>(static_cast<uint8_t*>(a.y) + row * a.y_stride + col, scaled);
    return;
  }
  union {
    uint4 bits;
    Out values[8];
  } out;
#pragma unroll
  for (int i = 0; i < 8; ++i) out.values[i] = static_cast<Out>(v[i]);
  *reinterpret_cast<uint4*>(static_cast<Out*>(a.y) + row * a.y_stride + col) = out.bits;
}

// What a finished sum of row `n` of w becomes, but for the scale of x.
template <Scales kScales>
__device__ __forceinline__ float w_scale_at(const Args& a, int n) {
  if (kScales == Scales::kBlocks || n >= a.n) return 1.0f;
  return __ldg(a.w_scales + n);
}
__device__ __forceinline__ float bias_at(const Args& a, int n) {
  return a.bias == nullptr || n >= a.n ? 0.0f : static_cast<float>(a.bias[n]);
}

// Writes a finished tile from `value(row of the tile, row of x)`; thread `t` of `threads`.
template <int kM, int kGroups, bool kGated, typename Value>
__device__ __forceinline__ void write_tile(const Args& a, int tile, int m_begin, int m_step, int t,
                                           int threads, Value value) {
  constexpr int kCols = kGated ? kGroups * kGroupRows / 2 : kGroups * kGroupRows;
  const int num_cols = kGated ? a.n / 2 : a.n;
  for (int i = t; i < div_up(kM, m_step) * (kCols / 8); i += threads) {
    const int row = m_begin + i / (kCols / 8) * m_step;
    const int local = i % (kCols / 8) * 8;
    const int col = tile * kCols + local;
    if (row >= a.m || col >= num_cols) continue;
    float v[8];
    value(local, row, v);
    if constexpr (kGated) {
      float up[8];
      value(local + kCols, row, up);
#pragma unroll
      for (int c = 0; c < 8; ++c) v[c] = gemm::silu_mul<Out>(v[c], up[c]);
    }
    store8(a, v, row, col);
  }
}

// The scales of x's rows in shared memory. Called once the first block has arrived: then the kernel
// that wrote them has ended.
template <int kM, Scales kScales>
__device__ __forceinline__ void load_x_scales(const Args& a, float* x_scales) {
  const int t = static_cast<int>(threadIdx.x);
  if (t >= kM) return;
  const bool plain = kScales == Scales::kRows && t < a.m;
  x_scales[t] = plain ? __ldcg(a.x_scales + t * a.x_scale_step) : 1.0f;
}

// A finished gated tile in e4m3, with a scale for each row and 128 columns: those of this tile or,
// where it has 64, of a pair of tiles. `held` keeps what each thread made of the pair's first.
template <int kM, int kGroups>
__device__ __forceinline__ void write_groups(const Args& a, int tile, const Out* staging,
                                             Out* held) {
  constexpr int kCols = kGroups * kGroupRows / 2;
  constexpr int kLanes = kCols / 8;  // of a row
  constexpr int kPad = kGroups * kGroupRows + 8;
  const bool is_first = kCols < kFp8Group && tile % 2 == 0;
  const int group = tile * kCols / kFp8Group;
  for (int i = static_cast<int>(threadIdx.x); i < kM * kLanes; i += kGroups * 128) {
    const int row = i / kLanes;
    const int local = i % kLanes * 8;
    const Out* const gate = staging + row * kPad + local;
    gemm::Eight<Out> out;
    float v[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      out.values[c] = static_cast<Out>(
          gemm::silu_mul<Out>(gemm::to_float(gate[c]), gemm::to_float(gate[kCols + c])));
      v[c] = gemm::to_float(out.values[c]);
    }
    if (is_first) {
      *reinterpret_cast<uint4*>(held + i * 8) = out.bits;
      continue;
    }
    float before[8] = {};
    if constexpr (kCols < kFp8Group) {
      out.bits = *reinterpret_cast<const uint4*>(held + i * 8);
#pragma unroll
      for (int c = 0; c < 8; ++c) before[c] = gemm::to_float(out.values[c]);
    }
    float largest = 0.0f;
#pragma unroll
    for (int c = 0; c < 8; ++c) largest = fmaxf(largest, fmaxf(fabsf(v[c]), fabsf(before[c])));
    const float scale = fp8_scale(warp_max<kLanes>(largest), 0.0f);
    if (row >= a.m) continue;
    if (local == 0) a.y_scales[group * a.y_scale_stride + row] = scale;
    const float inverse = 1.0f / scale;
#pragma unroll
    for (int c = 0; c < 8; ++c) v[c] *= inverse, before[c] *= inverse;
    uint8_t* const y = static_cast<uint8_t*>(a.y) + row * a.y_stride + tile * kCols + local;
    store_fp8_vec<Fp8::kE4M3>(y, v);
    if constexpr (kCols < kFp8Group) store_fp8_vec<Fp8::kE4M3>(y - kCols, before);
  }
}

}  // namespace srt::cuda::skinny_fp8
