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

constexpr size_t kMaxCtas = 1024;
constexpr size_t kMaxShareHeads = 64;  // KV heads of layers that share prefixes

// The workspace: counters, then (m, l), then o; where prefixes can be shared, the same of prefix
// units and of their members' own parts. Kinds of layers take turns in one workspace: their
// counters, which are zero between launches, stand where no kind has anything else.
struct Workspace {
  size_t ml;
  size_t o;
  size_t joins;
  size_t prefix_ml;
  size_t prefix_o;
  size_t own_ml;
  size_t own_o;
  size_t bytes = 0;

  // share_rows: of a row block; 0: nothing is shared. num_q_heads: of the model.
  Workspace(int num_ctas, const HeadBlocks& blocks, int head_dim, int share_rows, int num_q_heads) {
    const size_t parts = 2 * static_cast<size_t>(num_ctas);
    const size_t own_rows = share_rows > 0 ? size_t{kMaxSharers} * num_q_heads : 0;
    const size_t prefix_rows = own_rows + static_cast<size_t>(num_ctas) * share_rows;
    take(kMaxCtas * sizeof(unsigned));
    joins = take(kMaxSharers * kMaxShareHeads * sizeof(unsigned));
    ml = take(parts * kMaxHeadsPerBlock * sizeof(float2));
    o = take(parts * blocks.heads * head_dim * sizeof(float));
    prefix_ml = take(prefix_rows * sizeof(float2));
    prefix_o = take(prefix_rows * head_dim * sizeof(float));
    own_ml = take(own_rows * sizeof(float2));
    own_o = take(own_rows * head_dim * sizeof(float));
  }

 private:
  size_t take(size_t count) {
    const size_t at = bytes;
    bytes += round_up(count, kPartAlign);
    return at;
  }
};

// Rows of a row block; 0 where a KV head has so many query heads that they are cut apart.
inline int share_rows(int kernel_rows, const HeadBlocks& blocks, int num_kv_heads) {
  return blocks.per_kv == 1 && num_kv_heads <= static_cast<int>(kMaxShareHeads) ? kernel_rows : 0;
}

inline Args make_args(const DecodeParams& p, const HeadBlocks& blocks, int num_ctas,
                      int num_share_rows) {
  constexpr float kLog2E = 1.4426950408889634f;
  const Workspace space(num_ctas, blocks, p.kv.head_dim,
                        share_rows(num_share_rows, blocks, p.kv.num_kv_heads), p.num_q_heads);
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
  a.joins = reinterpret_cast<unsigned*>(workspace + space.joins);
  a.prefix_ml = reinterpret_cast<float2*>(workspace + space.prefix_ml);
  a.prefix_o = reinterpret_cast<float*>(workspace + space.prefix_o);
  a.own_ml = reinterpret_cast<float2*>(workspace + space.own_ml);
  a.own_o = reinterpret_cast<float*>(workspace + space.own_o);
  a.q_stride = p.q_stride;
  a.out_stride = p.out_stride;
  a.out_scales = p.out_scales;
  a.out_scale_stride = p.out_scale_stride;
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
  const Args args = make_args(p, blocks, num_ctas, S::kShareRows);
  return launch(decode_kernel<S>, shape, stream, args);
}

// Tile, warps, stages and CTAs of an SM as docs/kernels.md measured them. Registers are a stage,
// too: with one in shared memory less waits in the memory system, where every dependent read
// queues. Two where that has not been measured.
template <KvKind kKind, int kHeadDim, int kHeadTiles>
struct Tuned {
  static constexpr bool kFp8 = kKind == KvKind::kE4M3 || kKind == KvKind::kE5M2;
  static constexpr bool kSmall = kHeadDim == 64 && kHeadTiles == 1;
  static constexpr bool kWide = kHeadDim > 128;
  static constexpr bool kOneStage =
      !kWide && (kFp8 || kSmall || (kHeadDim == 128 && kHeadTiles == 1));
  using Shape = decode::Shape<kKind, kHeadDim, kHeadTiles, kFp8 && !kWide ? 32 : 16, kSmall ? 8 : 4,
                              kOneStage ? 1 : 2, kWide ? 1 : 2>;
};

// One specialization as the dispatcher sees it.
struct Entry {
  cudaError_t (*launch)(const DecodeParams&, int num_ctas, cudaStream_t) = nullptr;
  int tile_tokens = 0;
  int warps = 0;
  int ctas_per_sm = 0;
  int share_rows = 0;
};

template <KvKind kKind, int kHeadDim, int kHeadTiles>
Entry make_entry() {
  using S = typename Tuned<kKind, kHeadDim, kHeadTiles>::Shape;
  return {&launch_shape<S>, S::kTokens, S::kWarps, S::kCtasPerSm, S::kShareRows};
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
