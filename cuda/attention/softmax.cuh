// Online softmax over score fragments in the tensor cores' accumulator layout.
//
// A thread holds rows lane / 4 and lane / 4 + 8; value 4 * j + 2 * r + c of a fragment is row r,
// column 8 * j + 2 * (lane % 4) + c. mma.sync (m16n8) and wgmma (m64) agree on this.
#pragma once

#include <cmath>

#include "common/ptx.cuh"

namespace srt::cuda {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Running maximum (raw scores) and sum of one thread's two rows. `sum` covers this thread's columns
// only until finish() adds up the four threads of a row.
struct SoftmaxState {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
};

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// tanh(x) to about 1e-6: softcapped scores must not lose what the float accumulators hold.
__device__ __forceinline__ float tanh_fast(float x) {
  return 1.0f - __fdividef(2.0f, 1.0f + ptx::exp2_approx(2.0f * kLog2e * x));
}

// s -> tanh(s * inner_scale); the softmax then multiplies by softcap instead of by the scale.
template <int kCount>
__device__ __forceinline__ void apply_softcap(float (&s)[kCount], float inner_scale) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) s[i] = tanh_fast(s[i] * inner_scale);
}

// Turns scores into 2^(scale_log2 * (s - row max)) in place, adds them to the state, and returns in
// `rescale` what the earlier output must be multiplied by. Fully masked rows stay at zero.
template <int kCount>
__device__ __forceinline__ void online_softmax(float (&s)[kCount], SoftmaxState& state,
                                               float scale_log2, float (&rescale)[2]) {
  float offset[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float m = state.max[r];
#pragma unroll
    for (int i = 2 * r; i < kCount; i += 4) m = fmaxf(m, fmaxf(s[i], s[i + 1]));
    m = quad_max(m);
    const float seen = m == -INFINITY ? 0.0f : m;
    rescale[r] = ptx::exp2_approx((state.max[r] - seen) * scale_log2);
    state.max[r] = m;
    state.sum[r] *= rescale[r];
    offset[r] = seen * scale_log2;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    s[i] = ptx::exp2_approx(fmaf(s[i], scale_log2, -offset[(i / 2) % 2]));
    state.sum[(i / 2) % 2] += s[i];
  }
}

template <int kCount>
__device__ __forceinline__ void rescale_rows(float (&o)[kCount], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) o[i] *= factor[(i / 2) % 2];
}

// Completes the sums over a row's four threads; `inverse` is what the output is multiplied by
// (0 for a row that saw no key) and `lse` the natural log-sum-exp of the scaled scores.
__device__ __forceinline__ void finish_softmax(const SoftmaxState& state, float scale_log2,
                                               float (&inverse)[2], float (&lse)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = quad_sum(state.sum[r]);
    inverse[r] = sum > 0.0f ? __fdividef(1.0f, sum) : 0.0f;
    lse[r] = sum > 0.0f ? state.max[r] * scale_log2 * kLn2 + __logf(sum) : -INFINITY;
  }
}

}  // namespace srt::cuda
