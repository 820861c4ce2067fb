// One item of attention.h: a flash-style loop over tiles of keys with an online softmax.
//
// A row is one (query, head of the group). Keys and values of a tile are gathered from their pages
// to float32 once for all rows; sums are float32. MLA's values are the head of its keys, gathered
// once.
#pragma once

#include "cpu/attention.h"
#include "cpu/dispatch.h"
#include "cpu/dot_block.h"
#include "cpu/scratch.h"

namespace srt::cpu::SRT_ISA {

constexpr int64_t kTile = kTileKeys;
static_assert(kTile % kBlockCols == 0 && kTile % kLanes == 0);
constexpr float kMinusInf = -__builtin_huge_valf();

struct AttentionScratch {
  float *q, *keys, *values, *scores, *acc;  // [rows][dk], [kTile][dk], [kTile][dv], …, [rows][dv]
  float *row_max, *row_sum, *rescale;       // [rows]
  float *all_acc, *all_max, *all_sum;       // what the finished parts add up to
  int64_t rows, dk, dv;                     // dk, dv: head dims rounded up to whole vectors
  int64_t value_stride;                     // dv, or dk where values lie inside the keys
};

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

inline AttentionScratch carve(const AttentionParams& p, const AttentionItem& item) {
  AttentionScratch s{};
  s.rows = (item.q_end - item.q_begin) * (p.q_heads / p.kv_heads);
  s.dk = round_up(p.head_dim, kLanes);
  s.dv = round_up(p.v_head_dim, kLanes);
  const int64_t floats = (s.rows + kTile) * (s.dk + s.dv) + s.rows * (s.dv + kTile + 5);
  float* next = scratch(Scratch::kWork, static_cast<size_t>(floats));
  const auto take = [&next](int64_t n) {
    float* here = next;
    next += n;
    return here;
  };
  s.q = take(s.rows * s.dk);
  s.keys = take(kTile * s.dk);
  const bool is_latent = p.v_cache == p.k_cache;
  s.values = is_latent ? s.keys : take(kTile * s.dv);
  s.value_stride = is_latent ? s.dk : s.dv;
  s.acc = take(s.rows * s.dv);
  s.scores = take(s.rows * kTile);
  s.row_max = take(s.rows);
  s.row_sum = take(s.rows);
  s.rescale = take(s.rows);
  s.all_acc = take(s.rows * s.dv);
  s.all_max = take(s.rows);
  s.all_sum = take(s.rows);
  return s;
}

// size elements as float32, zeros up to padded.
template <typename T>
inline void widen(const T* x, int64_t size, int64_t padded, float* out) {
  for_lanes(size, [&](int64_t i, int64_t n) { store(out + i, load_part(x + i, n)); });
  for (int64_t i = round_up(size, kLanes); i < padded; ++i) out[i] = 0.0F;
}

template <typename T>
void load_queries(const AttentionParams& p, const AttentionItem& item, const AttentionScratch& s) {
  const int64_t group = p.q_heads / p.kv_heads;
  for (int64_t r = 0; r < s.rows; ++r) {
    const int64_t token = p.q_indptr[item.seq] + item.q_begin + r / group;
    const int64_t head = item.kv_head * group + r % group;
    const T* q = static_cast<const T*>(p.q) + token * p.q_stride + head * p.q_head_stride;
    widen(q, p.head_dim, s.dk, s.q + r * s.dk);
  }
}

inline void clear(float* acc, float* row_max, float* row_sum, int64_t rows, int64_t dim) {
  for (int64_t i = 0; i < rows * dim; ++i) acc[i] = 0.0F;
  for (int64_t r = 0; r < rows; ++r) {
    row_max[r] = kMinusInf;
    row_sum[r] = 0.0F;
  }
}

// Adds one part's row to the sum of the parts before it.
inline void fold_row(const float* part, float part_max, float part_sum, int64_t dim, float* acc,
                     float* row_max, float* row_sum) {
  if (part_sum == 0.0F) return;
  const float most = part_max > *row_max ? part_max : *row_max;
  const Vec old_scale = exp(splat(*row_max - most));
  const Vec new_scale = exp(splat(part_max - most));
  for_lanes(dim, [&](int64_t i, int64_t n) {
    const Vec added = load_part(part + i, n) * new_scale;
    store_part(acc + i, fma(load_part(acc + i, n), old_scale, added), n);
  });
  float scales[2 * kLanes];
  store(scales, old_scale);
  store(scales + kLanes, new_scale);
  *row_sum = *row_sum * scales[0] + part_sum * scales[kLanes];
  *row_max = most;
}

// Keys and values [begin, end) of the sequence, page by page.
template <typename Kv>
void gather(const AttentionParams& p, const AttentionItem& item, int64_t begin, int64_t end,
            const AttentionScratch& s) {
  const int32_t* pages = p.page_table + p.rows[item.seq] * p.page_stride;
  for (int64_t pos = begin; pos < end; ++pos) {
    const int64_t page = pages[pos / p.page_size];
    const int64_t place = (page * p.kv_heads + item.kv_head) * p.page_size + pos % p.page_size;
    widen(static_cast<const Kv*>(p.k_cache) + place * p.head_dim, p.head_dim, s.dk,
          s.keys + (pos - begin) * s.dk);
    if (s.values == s.keys) continue;
    widen(static_cast<const Kv*>(p.v_cache) + place * p.v_head_dim, p.v_head_dim, s.dv,
          s.values + (pos - begin) * s.dv);
  }
}

inline void cap_scores(float* scores, float cap) {
  for (int64_t i = 0; i < kTile; i += kLanes) {
    store(scores + i, splat(cap) * tanh(load(scores + i) / splat(cap)));
  }
}

// Scores of one row become weights; keys outside [lo, hi) of the tile get none.
inline void online_softmax(const AttentionParams& p, const AttentionScratch& s, int64_t r,
                           int64_t lo, int64_t hi) {
  float* scores = s.scores + r * kTile;
  const Vec scale = splat(p.scale * p.k_scale);
  for (int64_t i = 0; i < kTile; i += kLanes) store(scores + i, load(scores + i) * scale);
  if (p.softcap > 0.0F) cap_scores(scores, p.softcap);
  for (int64_t i = 0; i < lo; ++i) scores[i] = kMinusInf;
  for (int64_t i = hi; i < kTile; ++i) scores[i] = kMinusInf;

  Vec most = load(scores);
  for (int64_t i = kLanes; i < kTile; i += kLanes) most = max(most, load(scores + i));
  const float old_max = s.row_max[r];
  const float tile_max = max_lane(most);
  const float new_max = tile_max > old_max ? tile_max : old_max;
  if (new_max == kMinusInf) {  // this row sees nothing yet
    for (int64_t i = 0; i < kTile; i += kLanes) store(scores + i, splat(0.0F));
    s.rescale[r] = 1.0F;
    return;
  }
  Vec total = splat(0.0F);
  for (int64_t i = 0; i < kTile; i += kLanes) {
    const Vec weight = exp(load(scores + i) - splat(new_max));
    store(scores + i, weight);
    total = total + weight;
  }
  float rescale[kLanes];
  store(rescale, exp(splat(old_max - new_max)));
  s.rescale[r] = rescale[0];
  s.row_sum[r] = s.row_sum[r] * rescale[0] + sum(total);
  s.row_max[r] = new_max;
}

// acc = acc * rescale + weights * values for kRows rows and kVecs vectors at column d.
template <int kRows, int kVecs>
inline void accumulate_block(const AttentionScratch& s, int64_t row, int64_t d, int64_t keys) {
  Vec acc[kRows][kVecs];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVecs; ++j) {
      acc[i][j] = load(s.acc + (row + i) * s.dv + d + j * kLanes) * splat(s.rescale[row + i]);
    }
  }
  for (int64_t t = 0; t < keys; ++t) {
    Vec v[kVecs];
    for (int j = 0; j < kVecs; ++j) v[j] = load(s.values + t * s.value_stride + d + j * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const Vec weight = splat(s.scores[(row + i) * kTile + t]);
      for (int j = 0; j < kVecs; ++j) acc[i][j] = fma(weight, v[j], acc[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVecs; ++j) store(s.acc + (row + i) * s.dv + d + j * kLanes, acc[i][j]);
  }
}

template <int kRows>
inline void accumulate_rows(const AttentionScratch& s, int64_t row, int64_t keys) {
  int64_t d = 0;
  for (; d + 2 * kLanes <= s.dv; d += 2 * kLanes) accumulate_block<kRows, 2>(s, row, d, keys);
  if (d < s.dv) accumulate_block<kRows, 1>(s, row, d, keys);
}

inline void accumulate(const AttentionScratch& s, int64_t keys) {
  int64_t row = 0;
  for (; row + 4 <= s.rows; row += 4) accumulate_rows<4>(s, row, keys);
  switch (s.rows - row) {
    case 3:
      return accumulate_rows<3>(s, row, keys);
    case 2:
      return accumulate_rows<2>(s, row, keys);
    case 1:
      return accumulate_rows<1>(s, row, keys);
    default:
      return;
  }
}

// A row's sums over its weights become the output.
template <typename T>
inline void write_row(const AttentionParams& p, const AttentionItem& item, int64_t r,
                      const float* acc, float row_sum) {
  const int64_t group = p.q_heads / p.kv_heads;
  const int64_t token = p.q_indptr[item.seq] + item.q_begin + r / group;
  const int64_t head = item.kv_head * group + r % group;
  T* out = static_cast<T*>(p.out) + (token * p.q_heads + head) * p.v_head_dim;
  const Vec scale = splat(row_sum > 0.0F ? p.v_scale / row_sum : 0.0F);
  for_lanes(p.v_head_dim,
            [&](int64_t i, int64_t n) { store_part(out + i, load_part(acc + i, n) * scale, n); });
}

inline void write_partial(const AttentionParams& p, const AttentionItem& item,
                          const AttentionScratch& s) {
  float* tail = item.partial + s.rows * p.v_head_dim;
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t d = 0; d < p.v_head_dim; ++d) {
      item.partial[r * p.v_head_dim + d] = s.acc[r * s.dv + d];
    }
    tail[2 * r] = s.row_max[r];
    tail[2 * r + 1] = s.row_sum[r];
  }
}

// Keys [begin, end), inside one part: leaves acc, row_max and row_sum.
inline void attend_part(const AttentionParams& p, const AttentionItem& item,
                        const AttentionScratch& s, int64_t begin, int64_t end) {
  const int64_t group = p.q_heads / p.kv_heads;
  const int64_t q_len = p.q_indptr[item.seq + 1] - p.q_indptr[item.seq];
  const int64_t first_pos = p.seq_lens[item.seq] - q_len + item.q_begin;
  clear(s.acc, s.row_max, s.row_sum, s.rows, s.dv);
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t keys = end - tile < kTile ? end - tile : kTile;
    with_kv_type(p.format, [&](auto tag) {
      gather<typename decltype(tag)::type>(p, item, tile, tile + keys, s);
    });
    dot_matrix<false>(s.q, s.dk, s.rows, s.keys, s.dk, keys, s.dk, s.scores, kTile);
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t pos = first_pos + r / group;
      const int64_t last = p.causal && pos + 1 - tile < keys ? pos + 1 - tile : keys;
      const int64_t first = p.window_left >= 0 ? pos - p.window_left - tile : 0;
      const int64_t lo = first < 0 ? 0 : first < kTile ? first : kTile;
      online_softmax(p, s, r, lo, last < lo ? lo : last);
    }
    accumulate(s, keys);
  }
}

inline void attention(const AttentionParams& p, const AttentionItem& item) {
  const AttentionScratch s = carve(p, item);
  with_type(p.dtype, [&](auto tag) { load_queries<typename decltype(tag)::type>(p, item, s); });
  if (item.partial != nullptr) {
    attend_part(p, item, s, item.key_begin, item.key_end);
    return write_partial(p, item, s);
  }
  clear(s.all_acc, s.all_max, s.all_sum, s.rows, s.dv);
  for (int64_t begin = item.key_begin; begin < item.key_end;) {
    const int64_t next = (begin / kPartKeys + 1) * kPartKeys;
    attend_part(p, item, s, begin, next < item.key_end ? next : item.key_end);
    for (int64_t r = 0; r < s.rows; ++r) {
      fold_row(s.acc + r * s.dv, s.row_max[r], s.row_sum[r], s.dv, s.all_acc + r * s.dv,
               s.all_max + r, s.all_sum + r);
    }
    begin = next;
  }
  with_type(p.dtype, [&](auto tag) {
    for (int64_t r = 0; r < s.rows; ++r) {
      write_row<typename decltype(tag)::type>(p, item, r, s.all_acc + r * s.dv, s.all_sum[r]);
    }
  });
}

// Folds the parts of one item, in order.
inline void merge_attention(const AttentionParams& p, const AttentionItem* parts, int64_t count) {
  const int64_t rows = (parts->q_end - parts->q_begin) * (p.q_heads / p.kv_heads);
  const int64_t dim = p.v_head_dim;
  float* acc = scratch(Scratch::kWork, static_cast<size_t>(dim));
  for (int64_t r = 0; r < rows; ++r) {
    float row_max = 0.0F;
    float row_sum = 0.0F;
    clear(acc, &row_max, &row_sum, 1, dim);
    for (int64_t i = 0; i < count; ++i) {
      const float* tail = parts[i].partial + rows * dim + 2 * r;
      fold_row(parts[i].partial + r * dim, tail[0], tail[1], dim, acc, &row_max, &row_sum);
    }
    with_type(p.dtype, [&](auto tag) {
      write_row<typename decltype(tag)::type>(p, *parts, r, acc, row_sum);
    });
  }
}

}  // namespace srt::cpu::SRT_ISA
