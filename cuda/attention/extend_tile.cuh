// A block's piece of an extend step: one query tile under one KV head, read from the plan.
#pragma once

#include "attention/extend.h"

namespace srt::cuda {

struct ExtendTile {
  int seq_len;
  int q_begin;  // index of the tile's first token in q
  int num_tokens;
  int position;  // of that token in its sequence
  int kv_head;
  const int32_t* pages;  // the sequence's row of the page table
};

// The idx-th (tile, KV head) of the plan.
__device__ __forceinline__ ExtendTile planned_tile(const ExtendParams& p, int idx,
                                                   int tile_tokens) {
  const int32_t* item = p.plan + kExtendPlanHeader + 2 * (idx / p.kv.num_kv_heads);
  const int seq = item[0];
  const int first = item[1];
  const int q_len = p.q_indptr[seq + 1] - p.q_indptr[seq];
  ExtendTile t;
  t.seq_len = p.seqs.seq_lens[seq];
  t.q_begin = p.q_indptr[seq] + first;
  t.num_tokens = min(tile_tokens, q_len - first);
  t.position = t.seq_len - q_len + first;
  t.kv_head = idx % p.kv.num_kv_heads;
  t.pages = p.seqs.page_table + p.seqs.rows[seq] * p.seqs.page_table_stride;
  return t;
}

}  // namespace srt::cuda
