// Paged extend attention: ragged queries, a few or thousands a sequence, over
// each one's KV pages.
#pragma once

#include "attention/params.h"

namespace srt::cuda {

// Rows of one tile: whole tokens times the query heads that share a KV head.
constexpr int kExtendTileRows = 128;

// Query tokens of one tile. group = num_q_heads / num_kv_heads, at most
// kExtendTileRows.
constexpr int extend_tile_tokens(int group) { return kExtendTileRows / group; }

// The work of a step: (query tile, KV head) items in the order in which they
// should run. Made once a step, read by the attention kernel of every layer.
struct ExtendPlanParams {
  const int32_t* q_indptr = nullptr;    // [num_seqs + 1]
  const int32_t* seq_lens = nullptr;    // [num_seqs]
  const int32_t* rows = nullptr;        // [num_seqs], below 65536
  const int32_t* num_decode = nullptr;  // device int32; where given, replaces first_seq
  int32_t* plan = nullptr;              // [extend_plan_words(...)], 16-byte aligned
  int first_seq = 0;                    // sequences [first_seq, num_seqs) are planned
  int num_seqs = 0;
  int num_q_heads = 0;
  int num_kv_heads = 0;  // at most 512
  int key_bytes = 0;     // of one key and its value, of one head
  int64_t plan_words = 0;
};

// A plan: the number of items, 3 spare words, 4 words an item (see ExtendTile),
// then scratch.
constexpr int kExtendPlanHeader = 4;
constexpr int kExtendItemWords = 4;

// No more items than this come out of num_tokens query tokens in num_seqs
// sequences.
constexpr int64_t extend_max_items(int64_t num_tokens, int64_t num_seqs, int num_q_heads,
                                   int num_kv_heads) {
  return (num_tokens / extend_tile_tokens(num_q_heads / num_kv_heads) + num_seqs) * num_kv_heads;
}
constexpr int64_t extend_plan_words(int64_t num_tokens, int64_t num_seqs, int num_q_heads,
                                    int num_kv_heads) {
  const int64_t items = extend_max_items(num_tokens, num_seqs, num_q_heads, num_kv_heads);
  return kExtendPlanHeader + kExtendItemWords * items + num_seqs;
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
  const int32_t* plan = nullptr;  // from plan_extend
  Scoring scoring;
  int num_tokens = 0;  // upper bound, of the grid and of q's first dimension
  int num_seqs = 0;    // upper bound
  int num_q_heads = 0;
};

// The Hopper kernel where it takes the shape, else the portable one.
[[nodiscard]] cudaError_t extend_attention(const ExtendParams& p, cudaStream_t stream);

// mma.sync, sm_80 and later; head_dim / head_dim_v in {64, 80, 96, 128,
// 192/128, 256}, any page size.
[[nodiscard]] cudaError_t extend_portable(const ExtendParams& p, cudaStream_t stream);

// wgmma and TMA, sm_90a.
bool extend_sm90_takes(const ExtendParams& p);
[[nodiscard]] cudaError_t extend_sm90(const ExtendParams& p, cudaStream_t stream);

}  // namespace srt::cuda
