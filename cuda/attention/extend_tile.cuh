// A block's piece of an extend step: one query tile under one KV head, read
// from the plan.
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

// The idx-th item of the plan.
__device__ __forceinline__ ExtendTile planned_tile(const ExtendParams& p, int idx) {
  const int4 words =
      *reinterpret_cast<const int4*>(p.plan + kExtendPlanHeader + kExtendItemWords * idx);
  const auto packed = static_cast<uint32_t>(words.w);
  ExtendTile t;
  t.q_begin = words.x;
  t.position = words.y;
  t.seq_len = words.z;
  t.num_tokens = static_cast<int>(packed >> 16 & 127u) + 1;
  t.kv_head = static_cast<int>(packed >> 23);
  t.pages = p.page_table + (packed & 0xffffu) * p.page_table_stride;
  return t;
}

}  // namespace srt::cuda
