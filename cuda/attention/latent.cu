// Grids, workspace and dispatch of the latent attention kernels.
#include "attention/decode_launch.cuh"
#include "attention/latent.h"
#include "attention/latent_launch.h"
#include "attention/softmax.cuh"

namespace srt::cuda {
namespace {

constexpr int kSmallRows = 16;  // a block of so few heads lets two CTAs share an SM
constexpr int kMinTiles = 4;    // a CTA that works at all reads so many, where there are enough
constexpr int kMaxParts = 16;   // of a unit: each has 32 KB for 16 heads, which one CTA joins

struct LatentGrid {
  LatentBlocks blocks;
  int num_ctas;
  int part_rows;  // rows of (m, l) that a part has

  LatentGrid(int num_heads, int num_sms) : blocks(num_heads) {
    const bool small = blocks.heads <= kSmallRows;
    num_ctas = num_sms * (small ? 2 : 1);
    part_rows = small ? kSmallRows : kLatentTileRows;
  }
  size_t ml_at() const {
    return round_up(static_cast<size_t>(num_ctas) * sizeof(unsigned), decode::kPartAlign);
  }
  size_t o_at() const {
    const size_t bytes = 2 * static_cast<size_t>(num_ctas) * part_rows * sizeof(float2);
    return ml_at() + round_up(bytes, decode::kPartAlign);
  }
  size_t bytes() const {
    return o_at() + 2 * static_cast<size_t>(num_ctas) * blocks.heads * kLatentValue * sizeof(float);
  }
};

}  // namespace

DecodeGrid latent_decode_grid(int num_q_heads, KvDtype /*kv*/, int num_sms) {
  const LatentGrid grid(num_q_heads, num_sms);
  DecodeGrid out;
  out.plan.num_ctas = grid.num_ctas;
  out.plan.num_head_blocks = grid.blocks.count;
  out.plan.tile_tokens = 32;
  out.plan.min_tiles = kMinTiles;
  out.plan.max_parts = kMaxParts;
  out.workspace_bytes = grid.bytes();
  return out;
}

cudaError_t latent_decode(const DecodeParams& p, cudaStream_t stream) {
  if (p.num_rows == 0) return cudaSuccess;
  const LatentGrid grid(p.num_q_heads, num_sms());
  const bool fp8 = p.kv.dtype != KvDtype::kSame;
  auto* workspace = static_cast<char*>(p.workspace);
  decode::Args a{};
  a.q = p.q;
  a.out = p.out;
  a.k_pool = static_cast<const char*>(p.kv.k);
  a.page_table = p.page_table;
  a.message = p.message;
  a.arrivals = reinterpret_cast<unsigned*>(workspace);
  a.part_ml = reinterpret_cast<float2*>(workspace + grid.ml_at());
  a.part_o = reinterpret_cast<float*>(workspace + grid.o_at());
  a.q_stride = p.q_stride;
  a.out_stride = p.out_stride;
  a.table_stride = p.page_table_stride;
  a.num_rows = p.num_rows;
  a.group = p.num_q_heads;
  a.heads_per_block = grid.blocks.heads;
  a.blocks_per_kv = grid.blocks.count;
  a.num_kv_heads = 1;
  a.num_head_blocks = grid.blocks.count;
  a.log2_page = p.kv.log2_page_size;
  a.window_left = -1;
  a.plan_offset = p.plan_offset;
  a.is_bf16 = p.dtype == Dtype::kBF16;
  a.score_scale = p.scoring.scale * (fp8 ? p.kv.k_scale : 1.0f);
  a.exp_scale = a.score_scale * kLog2e;
  a.v_scale = fp8 ? p.kv.v_scale : 1.0f;
  const auto run = a.is_bf16 ? latent::decode_bf16 : latent::decode_f16;
  return run(a, p.kv.dtype, p.pdl, grid.num_ctas, stream);
}

cudaError_t latent_extend(const ExtendParams& p, cudaStream_t stream) {
  if (p.num_tokens == 0 || p.num_seqs == 0) return cudaSuccess;
  return p.dtype == Dtype::kBF16 ? latent::extend_bf16(p, stream) : latent::extend_f16(p, stream);
}

}  // namespace srt::cuda
