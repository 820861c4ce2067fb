// Softmax attention of ragged queries over paged keys and values.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"
#include "cpu/kv_format.h"

namespace srt::cpu {

struct AttentionParams {
  DType dtype;    // f32, bf16 or f16: of q and out
  const void* q;  // [tokens, q_heads, head_dim], strides q_stride, q_head_stride
  int64_t q_stride, q_head_stride, q_heads, head_dim;
  void* out;            // [tokens, q_heads, v_head_dim] contiguous
  const void* k_cache;  // [num_pages, kv_heads, page_size, head_dim]
  const void* v_cache;  // [num_pages, kv_heads, page_size, v_head_dim]; k_cache itself where values
                        // are the first v_head_dim columns of the keys (MLA)
  int64_t kv_heads, page_size, v_head_dim;
  KvFormat format;
  float k_scale, v_scale;  // x = stored * scale

  const int32_t* rows;        // [num_seqs]
  const int32_t* q_indptr;    // [num_seqs + 1]
  const int32_t* seq_lens;    // [num_seqs]
  const int32_t* page_table;  // [.., page_stride], by row
  int64_t num_seqs, page_stride;

  float scale, softcap;  // softcap 0: none
  int64_t window_left;   // -1: none
  bool causal;
};

// One task: the queries of a kv head's group at tokens [q_begin, q_end) of a sequence (counted from
// its first query), over keys [key_begin, key_end).
struct AttentionItem {
  int32_t seq, kv_head, q_begin, q_end, key_begin, key_end;
  float* partial;  // nullptr: the only item of its queries, writes out. Otherwise rows of
                   // v_head_dim sums, then the maximum and the sum of weights of each row.
};

// Sums run over parts of kPartKeys keys, whose results are folded in order. Parts and the tiles
// inside them begin at fixed positions, so an output's bits do not depend on how queries are
// batched or chunked, nor on who computes a part.
constexpr int64_t kTileKeys = 48;
constexpr int64_t kPartKeys = 6 * kTileKeys;

void attention(const AttentionParams& p);

}  // namespace srt::cpu
