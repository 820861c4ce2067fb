// The choice of experts: softmax, groups, top-k and the weights' norm in one kernel.
//
// Shapes    see RouteParams.
// Parallel  one warp a token; a lane holds every 32nd expert.
// Bound     latency: a token's logits are read once.
// Numerics  float throughout.
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "moe/moe.h"

namespace srt::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kPerLane = kMaxExperts / 32;

// A value and where it stands; of equal values the first wins.
struct Best {
  float value;
  int index;

  __device__ __forceinline__ void take(float other, int at) {
    if (other > value || (other == value && at < index)) {
      value = other;
      index = at;
    }
  }
};

__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float value = __shfl_xor_sync(kFullWarp, best.value, offset);
    const int index = __shfl_xor_sync(kFullWarp, best.index, offset);
    best.take(value, index);
  }
  return best;
}

// Lane l's i-th expert is 32 i + l. Experts beyond the last have the probability -1.
template <typename T>
__device__ __forceinline__ void softmax(const RouteParams& p, const T* logits, int lane,
                                        float (&x)[kPerLane]) {
  float top = -INFINITY;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = 32 * i + lane;
    if (e >= p.num_experts) continue;
    x[i] = to_float(logits[e]);
    if (p.softcap > 0.0f) x[i] = p.softcap * tanhf(x[i] / p.softcap);
    top = fmaxf(top, x[i]);
  }
  top = warp_max(top);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (32 * i + lane >= p.num_experts) continue;
    x[i] = expf(x[i] - top);
    sum += x[i];
  }
  sum = warp_sum(sum);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) x[i] = 32 * i + lane < p.num_experts ? x[i] / sum : -1.0f;
}

// Experts outside the best groups get the probability 0. `scratch`: one word a group.
__device__ __forceinline__ void keep_best_groups(const RouteParams& p, int lane, int* scratch,
                                                 float (&x)[kPerLane]) {
  const int group_size = p.num_experts / p.num_groups;
  if (lane < p.num_groups) scratch[lane] = 0;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = 32 * i + lane;  // floats that are not negative are ordered as their bits are
    if (e < p.num_experts) atomicMax(scratch + e / group_size, __float_as_int(x[i]));
  }
  __syncwarp();  // all groups' maxima stand
  float best_of_group = lane < p.num_groups ? __int_as_float(scratch[lane]) : -1.0f;
  unsigned kept = 0;
  for (int k = 0; k < p.top_groups; ++k) {
    const Best best = warp_best({best_of_group, lane});
    kept |= 1u << best.index;
    if (lane == best.index) best_of_group = -1.0f;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = 32 * i + lane;
    if (e < p.num_experts && (kept >> (e / group_size) & 1u) == 0) x[i] = 0.0f;
  }
}

template <typename T>
__global__ void __launch_bounds__(32 * kWarps) route_kernel(const __grid_constant__ RouteParams p) {
  __shared__ int scratch[kWarps][kMaxGroups];
  ptx::grid_launch();
  ptx::grid_wait();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int token = static_cast<int>(blockIdx.x) * kWarps + warp;
  if (token >= p.num_tokens) return;
  float x[kPerLane];
  softmax(p, static_cast<const T*>(p.logits) + token * p.logits_stride, lane, x);
  if (p.top_groups < p.num_groups) keep_best_groups(p, lane, scratch[warp], x);
  float weight = 0.0f;  // lane k keeps the k-th choice
  int expert = 0;
  for (int k = 0; k < p.top_k; ++k) {
    Best best{-2.0f, 0};
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) best.take(x[i], 32 * i + lane);
    best = warp_best(best);
    if (lane == k) {
      weight = best.value;
      expert = best.index;
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      if (32 * i + lane == best.index) x[i] = -1.0f;
  }
  if (p.norm_order > 0.0f) {
    const float power = p.norm_order == 1.0f ? weight : powf(weight, p.norm_order);
    const float sum = warp_sum(lane < p.top_k ? power : 0.0f);
    weight /= p.norm_order == 1.0f ? sum : powf(sum, 1.0f / p.norm_order);
  }
  if (lane >= p.top_k) return;
  p.weights[token * p.top_k + lane] = weight * p.scale;
  p.experts[token * p.top_k + lane] = expert;
}

}  // namespace

cudaError_t moe_route(const RouteParams& p, cudaStream_t stream) {
  if (p.num_tokens == 0) return cudaSuccess;
  if (p.num_experts > kMaxExperts || p.top_k > kMaxTopK || p.num_groups > kMaxGroups)
    return cudaErrorInvalidValue;
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(div_up(p.num_tokens, kWarps))),
                          .block = dim3(32 * kWarps),
                          .pdl = p.pdl};
  SRT_DISPATCH_DTYPE(p.dtype, T, { return launch(route_kernel<T>, shape, stream, p); });
}

}  // namespace srt::cuda
