// Joining partial results of decode attention by their maxima and sums: warps of a CTA, then CTAs.
//
// A partial result is (m, l, o): m the maximum of its exponents of two, l = sum 2^(x - m), and
// o = sum 2^(x - m) v. Both joins add in a fixed order, so a plan gives the same bits every time.
#pragma once

#include <cstdint>

#include "attention/decode_walk.cuh"

namespace srt::cuda::decode {

// One unit's place in the result.
struct Unit {
  int token;      // row of q and out
  int head;       // first query head
  int num_heads;  // of the block
  int parts;      // CTAs that share the unit
  int origin;     // the first of them
};

// The slot of a CTA's partial result: a unit that begins in a CTA and one that ends there differ.
__device__ __forceinline__ int part_slot(int cta, int origin) {
  return 2 * cta + (cta == origin ? 1 : 0);
}

__device__ __forceinline__ void store_pair(const Args& args, const Unit& unit, int head, int dim,
                                           int head_dim, float2 x) {
  auto* out = static_cast<uint16_t*>(args.out) + unit.token * args.out_stride +
              (unit.head + head) * head_dim + dim;
  *reinterpret_cast<uint32_t*>(out) =
      args.is_bf16 ? ptx::pack_pair<__nv_bfloat16>(x.x, x.y) : ptx::pack_pair<__half>(x.x, x.y);
}

// Shared memory of the join of a CTA's warps.
template <typename S>
struct MergeSpace {
  float2* ml;  // [kWarps, 8 * kHeadTiles]
  float* o;    // [kWarps, heads_per_block, kMergeStride]
};

template <typename S>
__device__ __forceinline__ void share_running(const MergeSpace<S>& space, const Args& args,
                                              Running<S>& run, int num_heads, int warp, int lane) {
  const int g = lane >> 2;
  const int t = lane & 3;
#pragma unroll
  for (int h = 0; h < S::kHeadTiles; ++h) {
    float l = run.l[h];
    l += __shfl_xor_sync(kFullWarp, l, 1);
    l += __shfl_xor_sync(kFullWarp, l, 2);
    if (t == 0)
      space.ml[(warp * S::kHeadTiles + h) * 8 + g] = make_float2(run.m[h] * args.exp_scale, l);
    float* o = space.o + (warp * args.heads_per_block + 8 * h + 2 * t) * S::kMergeStride;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (8 * h + 2 * t + (e & 1) >= num_heads) continue;
#pragma unroll
      for (int j = 0; j < S::kDimTiles; ++j)
        o[(e & 1) * S::kMergeStride + output_dim<S>(j, g, e >= 2)] = run.o[j][h][e];
    }
  }
}

// Joins the warps that held tiles of the unit: `active` of them, from warp `first` on.
template <typename S>
__device__ __forceinline__ void join_warps(const MergeSpace<S>& space, const Args& args,
                                           const Unit& unit, int first, int active) {
  constexpr int kPairs = S::kHeadDim / 2;
  constexpr int kHeads = 8 * S::kHeadTiles;
  const int slot = part_slot(blockIdx.x, unit.origin);
  for (int i = threadIdx.x; i < unit.num_heads * kPairs; i += S::kThreads) {
    const int head = i / kPairs;
    const int dim = i % kPairs * 2;
    float m = -INFINITY;
    for (int k = 0; k < active; ++k)
      m = fmaxf(m, space.ml[((first + k) % S::kWarps) * kHeads + head].x);
    float l = 0.0f;
    float2 o = make_float2(0.0f, 0.0f);
    for (int k = 0; k < active; ++k) {
      const int warp = (first + k) % S::kWarps;
      const float2 ml = space.ml[warp * kHeads + head];
      const float weight = ptx::exp2_approx(ml.x - m);
      const float2 x = *reinterpret_cast<const float2*>(
          space.o + (warp * args.heads_per_block + head) * S::kMergeStride + dim);
      l += weight * ml.y;
      o.x += weight * x.x;
      o.y += weight * x.y;
    }
    if (unit.parts == 1) {
      const float norm = args.v_scale / l;
      store_pair(args, unit, head, dim, S::kHeadDim, make_float2(o.x * norm, o.y * norm));
    } else {
      const int64_t at = static_cast<int64_t>(slot) * args.heads_per_block + head;
      *reinterpret_cast<float2*>(args.part_o + at * S::kHeadDim + dim) = o;
      if (dim == 0) args.part_ml[slot * kHeads + head] = make_float2(m, l);
    }
  }
}

// Joins all parts of a unit; run by the CTA that arrived last.
template <typename S>
__device__ __forceinline__ void join_parts(const Args& args, const Unit& unit) {
  constexpr int kPairs = S::kHeadDim / 2;
  constexpr int kHeads = 8 * S::kHeadTiles;
  constexpr int kBatch = 8;  // loads under way at once
  for (int i = threadIdx.x; i < unit.num_heads * kPairs; i += S::kThreads) {
    const int head = i / kPairs;
    const int dim = i % kPairs * 2;
    float m = -INFINITY;
    float l = 0.0f;
    float2 o = make_float2(0.0f, 0.0f);
    for (int k = 0; k < unit.parts; k += kBatch) {
      float2 ml[kBatch];
      float2 x[kBatch];
#pragma unroll
      for (int e = 0; e < kBatch; ++e) {
        const int cta = unit.origin + min(k + e, unit.parts - 1);
        const int slot = part_slot(cta, unit.origin);
        ml[e] = __ldcg(args.part_ml + slot * kHeads + head);
        x[e] = __ldcg(reinterpret_cast<const float2*>(
            args.part_o + (static_cast<int64_t>(slot) * args.heads_per_block + head) * S::kHeadDim +
            dim));
      }
      float top = m;
#pragma unroll
      for (int e = 0; e < kBatch; ++e) top = fmaxf(top, ml[e].x);
      const float keep = ptx::exp2_approx(m - top);
      l *= keep;
      o.x *= keep;
      o.y *= keep;
      m = top;
#pragma unroll
      for (int e = 0; e < kBatch; ++e) {
        const float weight = k + e < unit.parts ? ptx::exp2_approx(ml[e].x - m) : 0.0f;
        l += weight * ml[e].y;
        o.x += weight * x[e].x;
        o.y += weight * x[e].y;
      }
    }
    const float norm = args.v_scale / l;
    store_pair(args, unit, head, dim, S::kHeadDim, make_float2(o.x * norm, o.y * norm));
  }
}

// True in the CTA that finishes a shared unit last; the counter is back at zero then.
__device__ __forceinline__ bool arrive_last(const Args& args, const Unit& unit) {
  __shared__ bool last;
  __syncthreads();  // this CTA's partial result is written
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicInc(args.arrivals + unit.origin, static_cast<unsigned>(unit.parts - 1)) ==
           static_cast<unsigned>(unit.parts - 1);
    __threadfence();
  }
  __syncthreads();
  return last;
}

}  // namespace srt::cuda::decode
