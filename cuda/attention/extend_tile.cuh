// A block's piece of an extend step: one query tile under one KV head, read from the plan.
#pragma once

#include "attention/extend.h"

namespace srt::cuda {

struct ExtendTile {
  int q_begin;  // index of the tile's first token in q
  int num_tokens;
  int position;  // of that token in its sequence
  int seq_len;
  int kv_head;
  const int32_t* pages;  // the sequence's row of the page table
};

// The idx-th (tile, KV head) of the plan: the heads of a tile are neighbours.
__device__ __forceinline__ ExtendTile planned_tile(const ExtendParams& p, int idx) {
  const int32_t* item = p.plan + kExtendPlanHeader + kExtendTileWords * (idx / p.kv.num_kv_heads);
  const int4 words = *reinterpret_cast<const int4*>(item);
  ExtendTile t;
  t.q_begin = words.x;
  t.num_tokens = words.y;
  t.position = words.z;
  t.seq_len = words.w;
  t.kv_head = idx % p.kv.num_kv_heads;
  t.pages = p.page_table + item[4] * p.page_table_stride;
  return t;
}

}  // namespace srt::cuda
