// Picks the specialization of the decode kernel for a model's heads and pool.
#include "attention/decode.h"
#include "attention/decode_launch.cuh"
#include "attention/latent.h"

namespace srt::cuda {
namespace {

// A round's arithmetic hides behind its bytes, more or less
// (bench/results/h100_decode_attention.json).
constexpr double kRoundWeight = 1.0;

decode::KvKind pool_kind(Dtype dtype, KvDtype kv) {
  if (kv == KvDtype::kE4M3) return decode::KvKind::kE4M3;
  if (kv == KvDtype::kE5M2) return decode::KvKind::kE5M2;
  return dtype == Dtype::kBF16 ? decode::KvKind::kBF16 : decode::KvKind::kF16;
}

// Without a launcher where no specialization exists.
decode::Entry find_entry(int num_q_heads, int num_kv_heads, int head_dim, decode::KvKind kind) {
  const int tiles = decode::HeadBlocks(num_q_heads / num_kv_heads, head_dim).heads > 8 ? 2 : 1;
  switch (head_dim) {
    case 64:
      return decode::entry_hd64(kind, tiles);
    case 80:
      return decode::entry_hd80(kind, tiles);
    case 96:
      return decode::entry_hd96(kind, tiles);
    case 128:
      return decode::entry_hd128(kind, tiles);
    case 192:
      return decode::entry_hd192(kind, tiles);
    case 256:
      return decode::entry_hd256(kind, tiles);
    default:
      return {};
  }
}

}  // namespace

DecodeGrid decode_grid(int num_q_heads, int num_kv_heads, int head_dim, KvDtype kv, int num_sms) {
  if (head_dim == kLatentDim && num_kv_heads == 1) {
    return latent_decode_grid(num_q_heads, kv, num_sms);
  }
  // bf16 and fp16 pools run the same shape.
  const decode::KvKind kind = pool_kind(Dtype::kBF16, kv);
  const decode::Entry entry = find_entry(num_q_heads, num_kv_heads, head_dim, kind);
  if (entry.launch == nullptr) return {};
  const decode::HeadBlocks blocks(num_q_heads / num_kv_heads, head_dim);
  DecodeGrid grid;
  grid.plan.num_ctas = num_sms * entry.ctas_per_sm;
  grid.plan.num_head_blocks = num_kv_heads * blocks.per_kv;
  grid.plan.tile_tokens = entry.tile_tokens;
  grid.plan.min_tiles = entry.warps;
  grid.plan.group = num_q_heads / num_kv_heads;
  grid.plan.round_weight = kRoundWeight;
  grid.plan.share_rows = decode::share_rows(entry.share_rows, blocks, num_kv_heads);
  grid.workspace_bytes =
      decode::Workspace(grid.plan.num_ctas, blocks, head_dim, grid.plan.share_rows, num_q_heads)
          .bytes;
  return grid;
}

cudaError_t decode_attention(const DecodeParams& p, cudaStream_t stream) {
  if (p.num_rows == 0) return cudaSuccess;
  const decode::Entry entry =
      find_entry(p.num_q_heads, p.kv.num_kv_heads, p.kv.head_dim, pool_kind(p.dtype, p.kv.dtype));
  if (entry.launch == nullptr) return cudaErrorInvalidValue;
  return entry.launch(p, num_sms() * entry.ctas_per_sm, stream);
}

}  // namespace srt::cuda
