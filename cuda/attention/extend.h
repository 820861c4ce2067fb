// Paged extend attention: ragged queries, a few or thousands a sequence, over each one's KV pages.
#pragma once

#include "attention/params.h"

namespace srt::cuda {

// Rows of one tile: whole tokens times the query heads that share a KV head.
constexpr int kExtendTileRows = 128;

// Query tokens of one tile. group = num_q_heads / num_kv_heads, at most kExtendTileRows.
constexpr int extend_tile_tokens(int group) { return kExtendTileRows / group; }

// The tiles of a step, longest first, so that the grid's last blocks are short ones. Made once a
// step, read by the attention kernel of every layer.
struct ExtendPlanParams {
  const int32_t* q_indptr = nullptr;    // [num_seqs + 1]
  const int32_t* seq_lens = nullptr;    // [num_seqs]
  const int32_t* rows = nullptr;        // [num_seqs]
  const int32_t* num_decode = nullptr;  // device int32; where given, replaces first_seq
  int32_t* plan = nullptr;              // [extend_plan_words(...)], 16-byte aligned
  int first_seq = 0;                    // sequences [first_seq, num_seqs) are planned
  int num_seqs = 0;
  int tile_tokens = 0;
};

// A plan: the number of tiles, 3 spare words, then per tile q_begin, num_tokens, position, seq_len,
// row and 3 spare words; see ExtendTile.
constexpr int kExtendPlanHeader = 4;
constexpr int kExtendTileWords = 8;

// No more tiles than this come out of num_tokens query tokens in num_seqs sequences.
constexpr int64_t extend_max_tiles(int64_t num_tokens, int64_t num_seqs, int tile_tokens) {
  return num_tokens / tile_tokens + num_seqs;
}
constexpr int64_t extend_plan_words(int64_t num_tokens, int64_t num_seqs, int tile_tokens) {
  return kExtendPlanHeader + kExtendTileWords * extend_max_tiles(num_tokens, num_seqs, tile_tokens);
}

[[nodiscard]] cudaError_t plan_extend(const ExtendPlanParams& p, cudaStream_t stream);

struct ExtendParams {
  Dtype dtype = Dtype::kBF16;  // of q, out and an unquantized pool: bf16 or fp16
  const void* q = nullptr;     // [num_tokens, num_q_heads, head_dim]
  int64_t q_token_stride = 0;  // elements; heads are neighbours
  void* out = nullptr;         // [num_tokens, num_q_heads, head_dim_v]
  int64_t out_token_stride = 0;
  float* lse = nullptr;  // optional [num_q_heads, lse_stride]: ln(sum(exp(s)))
  int64_t lse_stride = 0;
  KvPool kv;
  const int32_t* page_table = nullptr;  // [num_rows, page_table_stride]
  int64_t page_table_stride = 0;
  const int32_t* plan = nullptr;  // from plan_extend with extend_tile_tokens(group)
  Scoring scoring;
  int num_tokens = 0;  // upper bound, of the grid and of q's first dimension
  int num_seqs = 0;    // upper bound
  int num_q_heads = 0;
};

// The Hopper kernel where it takes the shape, else the portable one.
[[nodiscard]] cudaError_t extend_attention(const ExtendParams& p, cudaStream_t stream);

// mma.sync, sm_80 and later; head_dim / head_dim_v in {64, 80, 96, 128, 192/128, 256}, any page
// size.
[[nodiscard]] cudaError_t extend_portable(const ExtendParams& p, cudaStream_t stream);

// wgmma and TMA, sm_90a.
bool extend_sm90_takes(const ExtendParams& p);
[[nodiscard]] cudaError_t extend_sm90(const ExtendParams& p, cudaStream_t stream);

}  // namespace srt::cuda
