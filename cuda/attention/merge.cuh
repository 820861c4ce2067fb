// Joining partial results of decode attention by their maxima and sums: warps of a CTA, then CTAs,
// then what a sequence has for itself with its part of a shared prefix.
//
// A partial result is (m, l, o): m the maximum of its exponents of two, l = sum 2^(x - m), and
// o = sum 2^(x - m) v. All joins add in a fixed order, so a plan gives the same bits every time.
#pragma once

#include <cstdint>

#include "attention/decode_walk.cuh"
#include "common/fp8_rows.cuh"

namespace srt::cuda::decode {

// Rows beyond the step's tokens belong to padding: nobody reads them, but NaN must not spread.
template <typename S>
__device__ __forceinline__ void clear_padding(const Args& args) {
  const int num_tokens = args.message[message::kNumTokens];
  const int num_heads = args.num_kv_heads * args.group;
  const bool is_fp8 = args.out_scales != nullptr;
  const int words = num_heads * S::kHeadDim / (is_fp8 ? 4 : 2);
#pragma unroll 1
  for (int row = num_tokens + blockIdx.x; row < args.num_rows; row += gridDim.x) {
    auto* out = reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(args.out) +
                                            row * args.out_stride * (is_fp8 ? 1 : 2));
#pragma unroll 1
    for (int i = threadIdx.x; i < words; i += S::kThreads) {
      out[i] = 0;
      if (is_fp8 && i < num_heads) args.out_scales[i * args.out_scale_stride + row] = 0.0f;
    }
  }
}

// One unit's place in the result.
struct Unit {
  int token;      // row of q and out
  int head;       // first query head
  int num_heads;  // of the block
  int parts;      // CTAs that share the unit
  int origin;     // the first of them
  int member;  // -1: the unit is all that the sequence reads; otherwise a prefix unit has the rest
};

// The slot of a CTA's partial result: a unit that begins in a CTA and one that ends there differ.
__device__ __forceinline__ int part_slot(int cta, int origin) {
  return 2 * cta + (cta == origin ? 1 : 0);
}

// A running sum of partial results, four dims of a head.
struct Joined {
  float m = -INFINITY;
  float l = 0.0f;
  float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

  __device__ __forceinline__ void raise(float top) {
    const float keep = ptx::exp2_approx(m - top);
    m = top;
    l *= keep;
    o = make_float4(o.x * keep, o.y * keep, o.z * keep, o.w * keep);
  }
  __device__ __forceinline__ void add(float weight, float part_l, float4 x) {
    l = fmaf(weight, part_l, l);
    o = make_float4(fmaf(weight, x.x, o.x), fmaf(weight, x.y, o.y), fmaf(weight, x.z, o.z),
                    fmaf(weight, x.w, o.w));
  }
};

template <typename S>
__device__ __forceinline__ float4* part_row(const Args& args, int slot, int head) {
  const int64_t row = static_cast<int64_t>(slot) * args.heads_per_block + head;
  return reinterpret_cast<float4*>(args.part_o + row * S::kHeadDim);
}

// Four dims of a head in e4m3, with the head's own scale: a warp has all of its 128.
__device__ __forceinline__ void store_fp8(const Args& args, int token, int head, int quad,
                                          float4 o) {
  const uint2 pairs =
      make_uint2(ptx::pack_pair<__nv_bfloat16>(o.x, o.y), ptx::pack_pair<__nv_bfloat16>(o.z, o.w));
  const float x[4] = {__uint_as_float(pairs.x << 16), __uint_as_float(pairs.x & 0xffff0000u),
                      __uint_as_float(pairs.y << 16), __uint_as_float(pairs.y & 0xffff0000u)};
  const float largest = fmaxf(fmaxf(fabsf(x[0]), fabsf(x[1])), fmaxf(fabsf(x[2]), fabsf(x[3])));
  const float scale = fp8_scale(warp_max(largest), 0.0f);
  const float inverse = 1.0f / scale;
  auto* out = static_cast<uint8_t*>(args.out) + token * args.out_stride + head * 128 + quad * 4;
  *reinterpret_cast<uint32_t*>(out) =
      floats_to_fp8x4<Fp8::kE4M3>(x[0] * inverse, x[1] * inverse, x[2] * inverse, x[3] * inverse);
  if (quad == 0) args.out_scales[head * args.out_scale_stride + token] = scale;
}

template <typename S>
__device__ __forceinline__ void store_output(const Args& args, const Unit& unit, int head, int quad,
                                             const Joined& x) {
  const float norm = args.v_scale / x.l;
  const float4 o = make_float4(x.o.x * norm, x.o.y * norm, x.o.z * norm, x.o.w * norm);
  if constexpr (S::kHeadDim == 128) {
    if (args.out_scales != nullptr) return store_fp8(args, unit.token, unit.head + head, quad, o);
  }
  auto* out = static_cast<uint16_t*>(args.out) + unit.token * args.out_stride +
              (unit.head + head) * S::kHeadDim + quad * 4;
  *reinterpret_cast<uint2*>(out) =
      args.is_bf16 ? make_uint2(ptx::pack_pair<__nv_bfloat16>(o.x, o.y),
                                ptx::pack_pair<__nv_bfloat16>(o.z, o.w))
                   : make_uint2(ptx::pack_pair<__half>(o.x, o.y), ptx::pack_pair<__half>(o.z, o.w));
}

// Where the result of a unit goes: out, or to the join with the shared prefix.
template <typename S>
__device__ __forceinline__ void store_unit(const Args& args, const Unit& unit, int head, int quad,
                                           const Joined& x) {
  if (unit.member < 0) return store_output<S>(args, unit, head, quad, x);
  const int row = unit.member * args.num_kv_heads * args.group + unit.head + head;
  reinterpret_cast<float4*>(args.own_o + static_cast<int64_t>(row) * S::kHeadDim)[quad] = x.o;
  if (quad == 0) args.own_ml[row] = make_float2(x.m, x.l);
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

// Joins the warps that held tiles of the unit: `active` of them, from warp `first` on. The result
// goes out, or to the unit's other parts.
template <typename S>
__device__ __forceinline__ void join_warps(const MergeSpace<S>& space, const Args& args,
                                           const Unit& unit, int first, int active) {
  constexpr int kQuads = S::kHeadDim / 4;
  constexpr int kHeads = 8 * S::kHeadTiles;
  const int slot = part_slot(blockIdx.x, unit.origin);
#pragma unroll 1
  for (int i = threadIdx.x; i < unit.num_heads * kQuads; i += S::kThreads) {
    const int head = i / kQuads;
    const int quad = i % kQuads;
    Joined sum;
    for (int k = 0; k < active; ++k)
      sum.m = fmaxf(sum.m, space.ml[((first + k) % S::kWarps) * kHeads + head].x);
    for (int k = 0; k < active; ++k) {
      const int warp = (first + k) % S::kWarps;
      const float2 ml = space.ml[warp * kHeads + head];
      const float* row = space.o + (warp * args.heads_per_block + head) * S::kMergeStride;
      sum.add(ptx::exp2_approx(ml.x - sum.m), ml.y, reinterpret_cast<const float4*>(row)[quad]);
    }
    if (unit.parts == 1) {
      store_unit<S>(args, unit, head, quad, sum);
    } else {
      part_row<S>(args, slot, head)[quad] = sum.o;
      if (quad == 0) args.part_ml[slot * kHeads + head] = make_float2(sum.m, sum.l);
    }
  }
}

// Joins all parts of a unit; run by the CTA that arrived last.
template <typename S>
__device__ __forceinline__ void join_parts(const Args& args, const Unit& unit) {
  constexpr int kQuads = S::kHeadDim / 4;
  constexpr int kHeads = 8 * S::kHeadTiles;
  constexpr int kBatch = S::kWarps * S::kCtasPerSm > 8 ? 4 : 8;  // loads under way at once
#pragma unroll 1
  for (int i = threadIdx.x; i < unit.num_heads * kQuads; i += S::kThreads) {
    const int head = i / kQuads;
    const int quad = i % kQuads;
    // Behind the first part, slots are two apart.
    const int first = part_slot(unit.origin, unit.origin);
    const float2* const all_ml = args.part_ml + first * kHeads + head;
    const float4* const all_x = part_row<S>(args, first, head) + quad;
    Joined sum;
#pragma unroll 1
    for (int k = 0; k < unit.parts; k += kBatch) {
      float2 ml[kBatch];
      float4 x[kBatch];
#pragma unroll
      for (int e = 0; e < kBatch; ++e) {
        const int slot = max(2 * (k + e) - 1, 0);
        ml[e] = make_float2(-INFINITY, 0.0f);
        x[e] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (k + e >= unit.parts) continue;
        ml[e] = __ldcg(all_ml + slot * kHeads);
        x[e] = __ldcg(all_x + slot * args.heads_per_block * kQuads);
      }
      float top = sum.m;
#pragma unroll
      for (int e = 0; e < kBatch; ++e) top = fmaxf(top, ml[e].x);
      sum.raise(top);
#pragma unroll
      for (int e = 0; e < kBatch; ++e) sum.add(ptx::exp2_approx(ml[e].x - top), ml[e].y, x[e]);
    }
    store_unit<S>(args, unit, head, quad, sum);
  }
}

// Counts one of `parts` arrivals; true for the last, when the counter is back at zero. Orders what
// this CTA wrote before, and what the last one reads behind.
__device__ __forceinline__ bool arrive(unsigned* counter, int parts) {
  const auto most = static_cast<unsigned>(parts - 1);
  unsigned before;  // atomicInc(), and one lighter fence instead of two
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(most)
               : "memory");
  return before == most;
}

// True in the CTA that arrives last, for all its threads.
__device__ __forceinline__ bool arrive_last(unsigned* counter, int parts) {
  __shared__ bool last;
  __syncthreads();  // this CTA's partial result is written
  if (threadIdx.x == 0) last = arrive(counter, parts);
  __syncthreads();
  return last;
}

// Where a row of a prefix unit's part stands: the first part in the member's place, for a CTA may
// hold many whole units; the parts of later CTAs, of which each has one at most, in the CTA's.
template <typename S>
__device__ __forceinline__ int prefix_row(const Args& args, int cta, int origin, int row,
                                          int own_row) {
  if (cta == origin) return own_row;
  const int first = kMaxSharers * args.num_kv_heads * args.group;
  return first + cta * S::kShareRows + row;
}

// Joins the prefix's parts and the sequence's own for four dims of one head. row: within the block.
template <typename S>
__device__ __forceinline__ Joined join_member(const Args& args, int2 unit, int row, int own_row,
                                              int quad) {
  Joined sum;
  const float2 own_ml = __ldcg(args.own_ml + own_row);
  const float4 own =
      __ldcg(reinterpret_cast<const float4*>(args.own_o) + own_row * (S::kHeadDim / 4) + quad);
#pragma unroll 1
  for (int k = 0; k < unit.y; ++k) {
    const int at = prefix_row<S>(args, unit.x + k, unit.x, row, own_row);
    const float2 ml = __ldcg(args.prefix_ml + at);
    const float4 x =
        __ldcg(reinterpret_cast<const float4*>(args.prefix_o) + at * (S::kHeadDim / 4) + quad);
    const float top = fmaxf(sum.m, ml.x);
    sum.raise(top);
    sum.add(ptx::exp2_approx(ml.x - top), ml.y, x);
  }
  const float top = fmaxf(sum.m, own_ml.x);
  sum.raise(top);
  sum.add(ptx::exp2_approx(own_ml.x - top), own_ml.y, own);
  return sum;
}

// A sequence's own part is done: joins the prefix's if that is done, too.
template <typename S>
__device__ __forceinline__ void meet_prefix(const Args& args, const Unit& unit,
                                            const int32_t* share) {
  const int32_t* member = share + share[kShareMembers] + unit.member * kMemberWords;
  const int block = member[kMemberBlock];
  const int kv_head = unit.head / args.group;
  const int first = share[share[kShareBlocks] + block * kBlockWords + kBlockFirstMember];
  const int2 prefix = reinterpret_cast<const int2*>(
      share + share[kShareUnits])[block * args.num_kv_heads + kv_head];
  const int join = unit.member * args.num_kv_heads + kv_head;
  if (!arrive_last(args.joins + join, prefix.y + 1)) return;
  constexpr int kQuads = S::kHeadDim / 4;
#pragma unroll 1
  for (int i = threadIdx.x; i < args.group * kQuads; i += S::kThreads) {
    const int head = i / kQuads;
    const int row = (unit.member - first) * args.group + head;
    store_output<S>(args, unit, head, i % kQuads,
                    join_member<S>(args, prefix, row, join * args.group + head, i % kQuads));
  }
}

}  // namespace srt::cuda::decode
