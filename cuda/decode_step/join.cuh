// What becomes of the warps' results of an attention item: joined over warps, then over its parts.
#pragma once

#include "decode_step/slices.cuh"

namespace srt::cuda::decode_step {

// A warp's running softmax over its tokens. m is the largest raw score of the lane's head, l sums
// this lane's tokens only; o[j][2 d + e] is dim 16 j + 8 d + row of head 2 quad + e (of an fp8
// pool: dim 16 j + 2 row + d).
template <typename L>
struct Attended {
  float m = -INFINITY;
  float l = 0.0f;
  float o[L::kHeadDim / 16][4] = {};
};

__device__ __forceinline__ float over_quad(float x, bool sum) {
  const float y = __shfl_xor_sync(0xffffffffu, x, 1);
  x = sum ? x + y : fmaxf(x, y);
  const float z = __shfl_xor_sync(0xffffffffu, x, 2);
  return sum ? x + z : fmaxf(x, z);
}

__device__ __forceinline__ uint2 pack_four(const float4& v) {
  return make_uint2(ptx::pack_pair<bf16>(v.x, v.y), ptx::pack_pair<bf16>(v.z, v.w));
}

__device__ __forceinline__ void add_scaled(float4& sum, float p, const float4& x) {
  sum.x += p * x.x, sum.y += p * x.y, sum.z += p * x.z, sum.w += p * x.w;
}

__device__ __forceinline__ float4 scaled(const float4& v, float p) {
  return make_float4(v.x * p, v.y * p, v.z * p, v.w * p);
}

__device__ __forceinline__ bool is_written_float(const uint4& v) {
  return v.x != kEmpty && v.y != kEmpty && v.z != kEmpty && v.w != kEmpty;
}

// The parts of a KV head's query heads to their output; then the parts are emptied again.
template <typename L>
__device__ __forceinline__ void join_parts(const Args& a, int parts, int first_head, int group,
                                           int copy) {
  constexpr int kVectors = L::kHeadDim / 4;
  constexpr int kBatch = 8;
  const int copy_heads = copy * a.p.num_rows * a.p.shape.num_q_heads;
  bf16* const out = a.attn + copy * kRows * a.p.shape.num_q_heads * L::kHeadDim;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < group * kVectors; i += kConsumers) {
    const int head = first_head + i / kVectors;
    const int at = i % kVectors * 4;
    const float* const lse = a.parts_lse + (copy_heads + head) * a.max_parts;
    float* const values =
        a.parts + static_cast<int64_t>(copy_heads + head) * a.max_parts * L::kHeadDim + at;
    float most = -INFINITY;
    float total = 0.0f;
    float4 sum{};
#pragma unroll 1
    for (int begin = 0; begin < parts; begin += kBatch) {
      uint32_t l[kBatch];
      uint4 v[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int part = min(begin + j, parts - 1);
        l[j] = load_fresh_4(lse + part);
        v[j] = load_fresh(values + part * L::kHeadDim);
      }
      Patience patience;
      for (bool written = false; !written;) {
        written = true;
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          if (l[j] != kEmpty && is_written_float(v[j])) continue;
          const int part = min(begin + j, parts - 1);
          l[j] = load_fresh_4(lse + part);
          v[j] = load_fresh(values + part * L::kHeadDim);
          written = false;
        }
        patience.lose();
      }
      const float before = most;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (begin + j < parts) most = fmaxf(most, __uint_as_float(l[j]));
      }
      const float rescale = ptx::exp2_approx(before - most);
      total *= rescale;
      sum = scaled(sum, rescale);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (begin + j >= parts) continue;
        const float p = ptx::exp2_approx(__uint_as_float(l[j]) - most);
        total += p;
        add_scaled(sum, p, reinterpret_cast<const float4&>(v[j]));
        publish(values + (begin + j) * L::kHeadDim, uint4{kEmpty, kEmpty, kEmpty, kEmpty});
      }
    }
    publish(out + head * L::kHeadDim + at, pack_four(scaled(sum, 1.0f / total)));
  }
  consumer_barrier();  // all have read the parts' log-sums
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < group * parts; i += kConsumers) {
    const int head = copy_heads + first_head + i / parts;
    publish(a.parts_lse + head * a.max_parts + i % parts, kEmpty);
  }
}

// All warps' results of an item to its output, or to the workspace where it is a part.
template <typename L>
__device__ __forceinline__ void join_warps(const Args& a, const Splits& splits, const Item& item,
                                           Attended<L>& run, float scale_log2, float v_scale,
                                           int copy, uint8_t* smem, const Lane& lane) {
  float* const o = reinterpret_cast<float*>(smem);  // [kWarps][kMaxGroup][kMergeStride]
  float2* const ml = reinterpret_cast<float2*>(o + kWarps * kMaxGroup * L::kMergeStride);
  const DecodeStepShape& shape = a.p.shape;
  const int group = shape.num_q_heads / shape.num_kv_heads;
  const int in_row = item.kv_head * group;
  const int first_head = (copy * kRows + item.row) * shape.num_q_heads + in_row;
  const int first_part = (copy * a.p.num_rows + item.row) * shape.num_q_heads + in_row;
  const int parts = splits.num[item.row];
  const float sum = over_quad(run.l, true);
  if (lane.row < group && lane.quad == 0)
    ml[lane.warp * kMaxGroup + lane.row] = make_float2(run.m * scale_log2, sum);
  constexpr int kRowDims = L::kKvBytes == 2 ? 1 : 2;  // from a row to the next
  constexpr int kHalfDims = L::kKvBytes == 2 ? 8 : 1;
  float* const at =
      o + (lane.warp * kMaxGroup + 2 * lane.quad) * L::kMergeStride + lane.row * kRowDims;
#pragma unroll
  for (int j = 0; j < L::kHeadDim / 16; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      at[e % 2 * L::kMergeStride + 16 * j + e / 2 * kHalfDims] = run.o[j][e];
  }
  consumer_barrier();  // all warps' results can be read
  constexpr int kVectors = L::kHeadDim / 4;
  for (int i = static_cast<int>(threadIdx.x); i < group * kVectors; i += kConsumers) {
    const int head = i / kVectors;
    const int at = i % kVectors * 4;
    float most = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, ml[w * kMaxGroup + head].x);
    float total = 0.0f;
    float4 v{};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float2 part = ml[w * kMaxGroup + head];
      const float p = ptx::exp2_approx(part.x - most);
      total += p * part.y;
      add_scaled(
          v, p,
          *reinterpret_cast<const float4*>(o + (w * kMaxGroup + head) * L::kMergeStride + at));
    }
    v = scaled(v, v_scale / total);
    if (parts == 1) {
      publish(a.attn + (first_head + head) * L::kHeadDim + at, pack_four(v));
    } else {
      const int part = (first_part + head) * a.max_parts + item.part;
      publish(a.parts + static_cast<int64_t>(part) * L::kHeadDim + at,
              reinterpret_cast<const uint4&>(v));
      if (at == 0) publish(a.parts_lse + part, __float_as_uint(most + __log2f(total)));
    }
  }
  consumer_barrier();  // shared memory has been read
}

}  // namespace srt::cuda::decode_step
