// Which keys a query row sees, and which key tiles a query tile can skip or take unmasked.
#pragma once

#include <cmath>

#include "attention/params.h"

namespace srt::cuda {

// Keys [begin, end) of one query row.
struct KeyRange {
  int begin;
  int end;
};

__device__ __forceinline__ KeyRange visible_keys(const Scoring& scoring, int position,
                                                 int seq_len) {
  const int end = scoring.causal ? min(position + 1, seq_len) : seq_len;
  const int begin = scoring.window_left < 0 ? 0 : max(0, position - scoring.window_left);
  return {begin, end};
}

// The key tiles of kTile keys that a query tile at positions [first, last] needs: [begin, end), of
// which [full_begin, full_end) are wholly visible to all of its rows.
struct TileRange {
  int begin;
  int end;
  int full_begin;
  int full_end;

  __device__ __forceinline__ bool needs_mask(int tile) const {
    return tile < full_begin || tile >= full_end;
  }
};

template <int kTile>
__device__ __forceinline__ TileRange tile_range(const Scoring& scoring, int first, int last,
                                                int seq_len) {
  const KeyRange low = visible_keys(scoring, first, seq_len);
  const KeyRange high = visible_keys(scoring, last, seq_len);
  TileRange r;
  r.begin = low.begin / kTile;
  r.end = (high.end + kTile - 1) / kTile;
  r.full_begin = (high.begin + kTile - 1) / kTile;
  r.full_end = low.end / kTile;
  return r;
}

// Scores of keys outside a row's range become -inf. `key` is the position of this thread's first
// column; the fragment layout is softmax.cuh's.
template <int kCount>
__device__ __forceinline__ void apply_mask(float (&s)[kCount], const KeyRange (&rows)[2], int key) {
  const int end[2] = {rows[0].end - key, rows[1].end - key};
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    if (8 * (i / 4) + i % 2 >= end[(i / 2) % 2]) s[i] = -INFINITY;
  const int begin[2] = {rows[0].begin - key, rows[1].begin - key};
  if (!__any_sync(0xffffffffu, max(begin[0], begin[1]) > 0)) return;  // no window reaches this tile
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    if (8 * (i / 4) + i % 2 < begin[(i / 2) % 2]) s[i] = -INFINITY;
}

}  // namespace srt::cuda
