// The consumers' attention: rotate, store K and V of the new token, attend over a part of a KV
// head.
//
// A tile of 128 tokens is 16 tokens a warp. The query heads of the KV head are the rows of m16n8k16
// (8 of 16). The warps' results are joined in shared memory; where a KV head is cut into parts, the
// CTA that has the first joins them, in their order.
#pragma once

#include "common/fp8.cuh"
#include "common/vec.cuh"
#include "decode_step/join.cuh"

namespace srt::cuda::decode_step {

constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ float2 unpack(uint32_t x) {
  return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(x));
}

// A head's values in the lanes of a quad: 8 of each 32, in bf16.
template <typename L>
struct Head {
  static constexpr int kParts = L::kHeadDim / 32;
  uint4 v[kParts];

  // All lanes of the warp; those without a head get zeros.
  __device__ __forceinline__ void await(const bf16* head, bool has_head, int quad) {
#pragma unroll
    for (int i = 0; i < kParts; ++i)
      v[i] = has_head ? load_fresh(head + 32 * i + 8 * quad) : uint4{};
    Patience patience;
    while (true) {
      bool written = true;
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        if (is_written(v[i])) continue;
        v[i] = load_fresh(head + 32 * i + 8 * quad);
        written = false;
      }
      if (__all_sync(0xffffffffu, written)) return;
      patience.lose();
    }
  }
};

// The cosines and sines of a position, as far as a lane needs them.
template <typename L>
struct Angles {
  static constexpr int kParts = L::kHeadDim / 64;
  float c[kParts][8];
  float s[kParts][8];

  __device__ __forceinline__ void load(const float* cos_sin, int position, int quad) {
    const float* const row = cos_sin + static_cast<int64_t>(position) * L::kHeadDim;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      load_floats(row + 32 * i + 8 * quad, c[i]);
      load_floats(row + L::kHeadDim / 2 + 32 * i + 8 * quad, s[i]);
    }
  }
};

template <typename L>
__device__ __forceinline__ void rotate(Head<L>& head, const Angles<L>& angles) {
  constexpr int kHalf = Angles<L>::kParts;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    auto* const lo = reinterpret_cast<uint32_t*>(&head.v[i]);
    auto* const hi = reinterpret_cast<uint32_t*>(&head.v[i + kHalf]);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 x = unpack(lo[j]);
      const float2 y = unpack(hi[j]);
      const float c0 = angles.c[i][2 * j];
      const float c1 = angles.c[i][2 * j + 1];
      const float s0 = angles.s[i][2 * j];
      const float s1 = angles.s[i][2 * j + 1];
      lo[j] = ptx::pack_pair<bf16>(x.x * c0 - y.x * s0, x.y * c1 - y.y * s1);
      hi[j] = ptx::pack_pair<bf16>(y.x * c0 + x.x * s0, y.y * c1 + x.y * s1);
    }
  }
}

// Values before a slot's in the pool.
template <typename L>
__device__ __forceinline__ int64_t pool_place(const Args& a, int slot, int kv_head) {
  const int log2_page = a.p.log2_page_size;
  const int64_t page = slot >> log2_page;
  return (((page * a.p.shape.num_kv_heads + kv_head) << log2_page) +
          (slot & ((1 << log2_page) - 1))) *
         L::kHeadDim;
}

// Eight values of bf16 as the pool stores them.
__device__ __forceinline__ uint2 to_fp8(const uint4& x, KvFormat format, float scale) {
  const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
  uint32_t stored[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float2 v = unpack(pairs[i]);
    if (scale != 1.0f) v = make_float2(__fdiv_rn(v.x, scale), __fdiv_rn(v.y, scale));
    stored[i] = format == KvFormat::kE4M3 ? floats_to_fp8x2<Fp8::kE4M3>(v.x, v.y)
                                          : floats_to_fp8x2<Fp8::kE5M2>(v.x, v.y);
  }
  return make_uint2(stored[0] | stored[1] << 16, stored[2] | stored[3] << 16);
}

// The new token's K or V: into its row of the stage, and into the pool. The lanes of quad 0 hold
// it.
template <typename L>
__device__ __forceinline__ void put_newest(const Head<L>& head, uint32_t row, void* cache,
                                           int64_t offset, KvFormat format, float scale,
                                           const Lane& lane) {
  if (lane.row == 0) {
#pragma unroll
    for (int i = 0; i < Head<L>::kParts; ++i) {
      const int at = 32 * i + 8 * lane.quad;
      if constexpr (L::kKvBytes == 2) {
        ptx::store_shared_16(row + at * 2, head.v[i]);
        *reinterpret_cast<uint4*>(static_cast<bf16*>(cache) + offset + at) = head.v[i];
      } else {
        const uint2 stored = to_fp8(head.v[i], format, scale);
        ptx::store_shared_4(row + at, stored.x);
        ptx::store_shared_4(row + at + 4, stored.y);
        *reinterpret_cast<uint2*>(static_cast<uint8_t*>(cache) + offset + at) = stored;
      }
    }
    hopper::fence_async_proxy();  // before the copy engine refills the stage
  }
  __syncwarp();  // the row can be read
}

// fp8 of the pool as bf16, exactly; see Fp8Widening.
struct Widening {
  int shift;
  uint32_t factors;

  // Of bytes 1 and 3.
  __device__ __forceinline__ uint32_t pair(uint32_t bytes) const {
    const uint32_t bits = ((bytes & 0x7f007f00u) >> shift) | (bytes & 0x80008000u);
    uint32_t wide;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(wide) : "r"(bits), "r"(factors), "r"(0x80008000u));
    return wide;
  }
  __device__ __forceinline__ uint4 eight(uint2 x) const {
    return {pair(__byte_perm(x.x, 0, 0x1404)), pair(__byte_perm(x.x, 0, 0x3424)),
            pair(__byte_perm(x.y, 0, 0x1404)), pair(__byte_perm(x.y, 0, 0x3424))};
  }
};

// The warp's 16 scores a head: s[j][e] is token 8 j + 2 quad + e.
template <typename L>
__device__ __forceinline__ void score(float (&s)[2][4], const Head<L>& q, uint32_t tokens,
                                      const Widening& widening, const Lane& lane) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const uint32_t row = tokens + (8 * j + lane.row) * L::kKvStride + lane.quad * 8 * L::kKvBytes;
#pragma unroll
    for (int i = 0; i < Head<L>::kParts; ++i) {
      uint4 k;
      if constexpr (L::kKvBytes == 2) {
        k = ptx::load_shared_16(row + 64 * i);
      } else {
        k = widening.eight(ptx::load_shared_8(row + 32 * i));
      }
      const uint32_t lo[4] = {q.v[i].x, 0, q.v[i].y, 0};
      const uint32_t hi[4] = {q.v[i].z, 0, q.v[i].w, 0};
      ptx::mma_m16n8k16<bf16>(s[j], lo, k.x, k.y);
      ptx::mma_m16n8k16<bf16>(s[j], hi, k.z, k.w);
    }
  }
}

// Scores to probabilities (the B operand of the next product), `left` tokens of 16 being visible.
template <typename L>
__device__ __forceinline__ void soften(float (&s)[2][4], Attended<L>& run, uint32_t (&p)[2],
                                       float scale_log2, int left, int quad) {
  float most = run.m;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (8 * j + 2 * quad + e >= left) s[j][e] = -INFINITY;
      most = fmaxf(most, s[j][e]);
    }
  }
  most = over_quad(most, false);
  const float seen = most == -INFINITY ? 0.0f : most;
  const float rescale = ptx::exp2_approx((run.m - seen) * scale_log2);
  run.m = most;
  run.l *= rescale;
  const float of_head[2] = {__shfl_sync(0xffffffffu, rescale, 8 * quad),
                            __shfl_sync(0xffffffffu, rescale, 8 * quad + 4)};
#pragma unroll
  for (int j = 0; j < L::kHeadDim / 16; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) run.o[j][e] *= of_head[e % 2];
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float x = ptx::exp2_approx((s[j][0] - seen) * scale_log2);
    const float y = ptx::exp2_approx((s[j][1] - seen) * scale_log2);
    run.l += x + y;
    p[j] = ptx::pack_pair<bf16>(x, y);
  }
}

// Zeros where the warp's 16 tokens were: what is stale in a stage meets zeros of x (take_stage),
// and must be finite.
template <typename L>
__device__ __forceinline__ void erase_tokens(uint32_t tokens) {
  __syncwarp();  // every lane has read
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x) % 32 * 16; i < 16 * L::kKvStride; i += 32 * 16)
    ptx::store_shared_16(tokens + i, uint4{});
  hopper::fence_async_proxy();  // before the copy engine refills the stage
}

// O^T += V^T P^T: the heads are the 8 columns, so that nothing is computed for heads that are not.
// ldmatrix moves fp8 by pairs of dims; one is a row of the upper half, one of the lower.
template <typename L>
__device__ __forceinline__ void accumulate(Attended<L>& run, const uint32_t (&p)[2],
                                           uint32_t tokens, const Widening& widening) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int high = lane / 16;
  const int low = lane / 8 % 2;
  if constexpr (L::kKvBytes == 2) {
    const uint32_t row = tokens + (lane % 8 + high * 8) * L::kKvStride + low * 16;
#pragma unroll
    for (int j = 0; j < L::kHeadDim / 16; ++j) {
      uint32_t v[4];
      ptx::ldmatrix_x4_trans(v, row + j * 32);
      ptx::mma_m16n8k16<bf16>(run.o[j], v, p[0], p[1]);
    }
  } else {
    const uint32_t row = tokens + (lane % 8 + low * 8) * L::kKvStride + high * 16;
#pragma unroll
    for (int j = 0; j < L::kHeadDim / 16; j += 2) {
      uint32_t v[4];
      ptx::ldmatrix_x4_trans(v, row + j * 16);
#pragma unroll
      for (int d = 0; d < 2; ++d) {
        const uint32_t wide[4] = {widening.pair(v[2 * d] << 8), widening.pair(v[2 * d]),
                                  widening.pair(v[2 * d + 1] << 8), widening.pair(v[2 * d + 1])};
        ptx::mma_m16n8k16<bf16>(run.o[j + d], wide, p[0], p[1]);
      }
    }
  }
}

template <typename L>
__device__ __forceinline__ void run_attention(Ring<L::kStages>& ring, const Args& a,
                                              const Splits& splits, const DecodeStepLayer& layer,
                                              const Share& share, int copy, uint8_t* smem) {
  const Lane lane;
  const DecodeStepShape& shape = a.p.shape;
  const int group = shape.num_q_heads / shape.num_kv_heads;
  const int heads = shape.num_q_heads + 2 * shape.num_kv_heads;
  const Widening widening{a.kv_shift, a.kv_factors};
  const float scale_log2 = a.p.scale * (L::kKvBytes == 2 ? 1.0f : layer.k_scale) * kLog2E;
  const int count = share.count();
#pragma unroll 1
  for (int n = 0; n < count; ++n) {
    const Item item = item_at(splits, a.p.num_rows, share.unit(n));
    const int newest = splits.len[item.row] - 1;
    const int newest_tile = newest / kTileTokens;
    const bool owns = newest_tile < item.end && newest_tile >= item.begin &&
                      newest % kTileTokens / 16 == lane.warp;
    Angles<L> angles;
    angles.load(a.p.cos_sin, a.p.positions[item.row], lane.quad);
    const int slot = owns ? a.p.slots[item.row] : 0;
    const bf16* const fused = a.qkv + (copy * kRows + item.row) * heads * L::kHeadDim;
    Head<L> q;
    q.await(fused + (item.kv_head * group + lane.row) * L::kHeadDim, lane.row < group, lane.quad);
    Head<L> fresh;  // the new token's K, then its V
    if (owns) {
      fresh.await(fused + (shape.num_q_heads + item.kv_head) * L::kHeadDim, true, lane.quad);
      rotate(fresh, angles);
    }
    rotate(q, angles);

    Attended<L> run;
    const int mine = lane.warp * 16 / L::kStageTokens;  // which of a tile's stages
    const uint32_t tokens = lane.warp * 16 % L::kStageTokens * L::kKvStride;
#pragma unroll 1
    for (int tile = item.begin; tile < item.end; ++tile) {
      const int left = newest + 1 - tile * kTileTokens - lane.warp * 16;
      const bool has_newest = owns && tile == newest_tile;
      const uint32_t newest_row = newest % 16 * L::kKvStride;
      uint32_t p[2];
#pragma unroll 1
      for (int s = 0; s < 2 * L::kKvStages; ++s) {
        wait(ring.full_bar(), ring.round);
        const uint32_t at = ring.stage() + tokens;
        const bool is_key = s < L::kKvStages;
        if (s % L::kKvStages == mine) {
          if (has_newest) {
            put_newest<L>(fresh, at + newest_row, is_key ? layer.k_cache : layer.v_cache,
                          pool_place<L>(a, slot, item.kv_head), a.p.kv_format,
                          is_key ? layer.k_scale : layer.v_scale, lane);
          }
          if (is_key) {
            if (has_newest) {
              const int v_head = shape.num_q_heads + shape.num_kv_heads + item.kv_head;
              fresh.await(fused + v_head * L::kHeadDim, true, lane.quad);
            }
            float scores[2][4] = {};
            score<L>(scores, q, at, widening, lane);
            soften<L>(scores, run, p, scale_log2, left, lane.quad);
          } else {
            accumulate<L>(run, p, at, widening);
          }
          if ((item.end - tile) * 2 * L::kKvStages - s <= L::kStages) erase_tokens<L>(at);
        }
        hopper::barrier_arrive(ring.empty_bar());  // each lane for itself
        ring.next();
      }
    }
    const float v_scale = L::kKvBytes == 2 ? 1.0f : layer.v_scale;
    join_warps<L>(a, splits, item, run, scale_log2, v_scale, copy, smem, lane);
  }
  // When nobody waits for this CTA's parts any more: those who joined before could wait in a
  // circle.
#pragma unroll 1
  for (int n = 0; n < count; ++n) {
    const Item item = item_at(splits, a.p.num_rows, share.unit(n));
    const int parts = splits.num[item.row];
    if (item.part != 0 || parts == 1) continue;
    const int first_head = item.row * shape.num_q_heads + item.kv_head * group;
    join_parts<L>(a, parts, first_head, group, copy);
  }
}

}  // namespace srt::cuda::decode_step
