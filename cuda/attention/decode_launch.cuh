// From DecodeParams to a launch of one specialization of the decode kernel.
#pragma once

#include "attention/decode.h"
#include "attention/decode_kernel.cuh"
#include "common/launch.h"

namespace srt::cuda::decode {

constexpr int kMaxHeadsPerBlock = 16;
constexpr size_t kPartAlign = 256;

// Two tiles of heads and a wide head would not fit a thread's registers.
constexpr int max_head_tiles(int head_dim) { return head_dim > 128 ? 1 : 2; }

// How the query heads of a KV head are cut into blocks of at most 8 or 16.
struct HeadBlocks {
  int per_kv;
  int heads;

  HeadBlocks(int group, int head_dim)
      : per_kv(div_up(group, 8 * max_head_tiles(head_dim))), heads(div_up(group, per_kv)) {}
};

// The workspace: arrival counters, then (m, l), then o.
struct Workspace {
  size_t ml;
  size_t o;
  size_t bytes;

  Workspace(int num_ctas, int heads_per_block, int head_dim) {
    const size_t parts = 2 * static_cast<size_t>(num_ctas);
    ml = round_up(static_cast<size_t>(num_ctas) * sizeof(unsigned), kPartAlign);
    o = ml + round_up(parts * kMaxHeadsPerBlock * sizeof(float2), kPartAlign);
    bytes = o + parts * heads_per_block * head_dim * sizeof(float);
  }
};

inline Args make_args(const DecodeParams& p, const HeadBlocks& blocks, int num_ctas) {
  constexpr float kLog2E = 1.4426950408889634f;
  const Workspace space(num_ctas, blocks.heads, p.kv.head_dim);
  auto* workspace = static_cast<char*>(p.workspace);
  const bool fp8 = p.kv.dtype != KvDtype::kSame;
  Args a;
  a.q = p.q;
  a.out = p.out;
  a.k_pool = static_cast<const char*>(p.kv.k);
  a.v_pool = static_cast<const char*>(p.kv.v);
  a.page_table = p.page_table;
  a.message = p.message;
  a.arrivals = reinterpret_cast<unsigned*>(workspace);
  a.part_ml = reinterpret_cast<float2*>(workspace + space.ml);
  a.part_o = reinterpret_cast<float*>(workspace + space.o);
  a.q_stride = p.q_stride;
  a.out_stride = p.out_stride;
  a.table_stride = p.page_table_stride;
  a.num_rows = p.num_rows;
  a.group = p.num_q_heads / p.kv.num_kv_heads;
  a.heads_per_block = blocks.heads;
  a.blocks_per_kv = blocks.per_kv;
  a.num_kv_heads = p.kv.num_kv_heads;
  a.num_head_blocks = p.kv.num_kv_heads * blocks.per_kv;
  a.log2_page = p.kv.log2_page_size;
  a.window_left = p.scoring.window_left;
  a.plan_offset = p.plan_offset;
  a.is_bf16 = p.dtype == Dtype::kBF16;
  a.score_scale = p.scoring.scale * (fp8 ? p.kv.k_scale : 1.0f);
  a.softcap = p.scoring.softcap;
  a.exp_scale = (p.scoring.softcap > 0.0f ? 1.0f : a.score_scale) * kLog2E;
  a.v_scale = fp8 ? p.kv.v_scale : 1.0f;
  return a;
}

template <typename S>
[[nodiscard]] cudaError_t launch_shape(const DecodeParams& p, int num_ctas, cudaStream_t stream) {
  const HeadBlocks blocks(p.num_q_heads / p.kv.num_kv_heads, S::kHeadDim);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(num_ctas));
  shape.block = dim3(S::kThreads);
  shape.smem_bytes = smem_bytes<S>(blocks.heads);
  shape.pdl = p.pdl;
  const Args args = make_args(p, blocks, num_ctas);
  return launch(decode_kernel<S>, shape, stream, args);
}

// Tile, warps, stages and CTAs of an SM as docs/kernels.md measured them.
template <KvKind kKind, int kHeadDim, int kHeadTiles>
struct Tuned {
  static constexpr bool kFp8 = kKind == KvKind::kE4M3 || kKind == KvKind::kE5M2;
  static constexpr bool kSmall = kHeadDim == 64 && kHeadTiles == 1;
  static constexpr bool kWide = kHeadDim > 128;
  using Shape = decode::Shape<kKind, kHeadDim, kHeadTiles, kFp8 && !kWide ? 32 : 16, kSmall ? 8 : 4,
                              2, kWide ? 1 : 2>;
};

// One specialization as the dispatcher sees it.
struct Entry {
  cudaError_t (*launch)(const DecodeParams&, int num_ctas, cudaStream_t) = nullptr;
  int tile_tokens = 0;
  int warps = 0;
  int ctas_per_sm = 0;
};

template <KvKind kKind, int kHeadDim, int kHeadTiles>
Entry make_entry() {
  using S = typename Tuned<kKind, kHeadDim, kHeadTiles>::Shape;
  return {&launch_shape<S>, S::kTokens, S::kWarps, S::kCtasPerSm};
}

template <KvKind kKind, int kHeadDim>
Entry pick_head_tiles(int head_tiles) {
  if constexpr (max_head_tiles(kHeadDim) == 2) {
    if (head_tiles == 2) return make_entry<kKind, kHeadDim, 2>();
  }
  return make_entry<kKind, kHeadDim, 1>();
}

// The specializations of one head dim; each has a source of its own.
template <int kHeadDim>
Entry pick_kind(KvKind kind, int head_tiles) {
  switch (kind) {
    case KvKind::kBF16:
      return pick_head_tiles<KvKind::kBF16, kHeadDim>(head_tiles);
    case KvKind::kF16:
      return pick_head_tiles<KvKind::kF16, kHeadDim>(head_tiles);
    case KvKind::kE4M3:
      return pick_head_tiles<KvKind::kE4M3, kHeadDim>(head_tiles);
    case KvKind::kE5M2:
      return pick_head_tiles<KvKind::kE5M2, kHeadDim>(head_tiles);
  }
  return {};
}

Entry entry_hd64(KvKind kind, int head_tiles);
Entry entry_hd80(KvKind kind, int head_tiles);
Entry entry_hd96(KvKind kind, int head_tiles);
Entry entry_hd128(KvKind kind, int head_tiles);
Entry entry_hd192(KvKind kind, int head_tiles);
Entry entry_hd256(KvKind kind, int head_tiles);

}  // namespace srt::cuda::decode
