// Prefix units: KV that many sequences share, read once for all query heads of a row block.
//
// A round is one tile of every warp; all warps compute on all of it, each for its own 16 rows, so
// that no join of warps is needed. Rows are (member, head of the group) in this order.
#pragma once

#include <cstdint>

#include "attention/merge.cuh"

namespace srt::cuda::decode {

// The arithmetic of a warp: 16 rows by a piece of the round that leaves room for registers.
template <typename S>
using PrefixShape =
    Shape<S::kKind, S::kHeadDim, 2, S::kWarps == 8 ? 16 : 64, S::kWarps, 2, S::kCtasPerSm>;

// A CTA's run of rounds, and a position in it. begin and end count along the run.
struct PrefixCursor {
  const int32_t* blocks;  // of the share section
  int block;
  int head;
  int4 words;  // the block's: ShareBlockWord
  int begin;
  int end;
  int round0;  // the unit's round that stands at `begin`

  __device__ __forceinline__ void start(const Record& record) {
    const int32_t* share = record.share_section();
    blocks = share + share[kShareBlocks];
    block = record.seq;
    head = record.block;
    words = reinterpret_cast<const int4*>(blocks)[block];
    begin = 0;
    round0 = record.tile;
    end = min(record.num_tiles, words.z - round0);
  }
  __device__ __forceinline__ void next(const Args& args, int num_rounds) {
    if (++head == args.num_kv_heads) {
      head = 0;
      words = reinterpret_cast<const int4*>(blocks)[++block];
    }
    round0 = 0;
    begin = end;
    end = min(begin + words.z, num_rounds);
  }
};
static_assert(kBlockFirstMember == 0 && kBlockNumMembers == 1 && kBlockNumRounds == 2 &&
              kBlockRow == 3 && kBlockWords == 4);

// Finds the warp's tile of a round, whole and visible to all.
template <typename S>
__device__ __forceinline__ Located locate_prefix(const Args& args, PrefixCursor& at, int place,
                                                 int num_rounds, int warp, int lane) {
  Located tile{0, 0, {0, 0}, false};
  if (place >= num_rounds) return tile;
  while (place >= at.end) at.next(args, num_rounds);
  const int first = ((at.round0 + place - at.begin) * S::kWarps + warp) * S::kTokens;
  const int token = first + (one_page<S>(args) ? 0 : lane % S::kTokens);
  tile.visible = make_int2(0, S::kTokens);
  tile.row = (at.head << args.log2_page) + (token & ((1 << args.log2_page) - 1));
  tile.page = __ldg(args.page_table + at.words.w * args.table_stride + (token >> args.log2_page));
  return tile;
}

template <typename S>
__device__ __forceinline__ int prefix_rows(const Args& args, const PrefixCursor& at) {
  return at.words.y * args.group;
}

// The warp's 16 query rows of the unit.
template <typename S, typename P>
__device__ __forceinline__ void load_rows(const Args& args, const PrefixCursor& at,
                                          const int32_t* members, int first_row, int lane,
                                          Queries<P>& q) {
#pragma unroll
  for (int h = 0; h < P::kHeadTiles; ++h) {
    const int row = first_row + (lane >> 2) + 8 * h;
    const uint16_t* source = nullptr;
    if (row < prefix_rows<S>(args, at)) {
      const int member = at.words.x + row / args.group;
      const int head = at.head * args.group + row % args.group;
      source = static_cast<const uint16_t*>(args.q) +
               members[member * kMemberWords + kMemberSeq] * args.q_stride + head * S::kHeadDim;
    }
    load_query_row(q, h, source, lane);
  }
}

// The warp's rows of a round, piece by piece. `k`, `v`: the round's tiles in shared memory.
template <typename S, typename P>
__device__ __forceinline__ void run_round(const Args& args, const Queries<P>& q, Running<P>& run,
                                          uint32_t k, uint32_t v, int lane) {
  constexpr int kPieces = S::kWarps * S::kTokens / P::kTokens;
  const uint32_t fragment = fragment_offset<P>(lane);
#pragma unroll 1
  for (int piece = 0; piece < kPieces; ++piece) {
    const uint32_t offset = fragment + piece * P::kTileBytes;
    Scores<P> scores;
    scores.reset();
#pragma unroll
    for (int m = 0; m < kMatrices<P>; ++m) {
      Fragments<P, 1> keys;
      load_keys(keys, k + offset, m);
      score(scores, q, keys, m);
    }
    if (args.softcap > 0.0f) cap_tile(scores, args.score_scale, args.softcap);
    Probs<P> probs;
    online_softmax(run, scores, args.exp_scale, probs, lane);
#pragma unroll
    for (int m = 0; m < kMatrices<P>; ++m) {
      Fragments<P, 1> values;
      load_values(values, v + offset, m);
      accumulate(run, probs, values, m);
    }
  }
}

// The warp's rows of a part, from row0 on. origin: the CTA in which the unit begins.
template <typename S, typename P>
__device__ __forceinline__ void store_rows(const Args& args, const PrefixCursor& at,
                                           Running<P>& run, int origin, int row0, int lane) {
  const int g = lane >> 2;
  const int t = lane & 3;
  const int num_rows = prefix_rows<S>(args, at);
  const auto place = [&](int row) {
    const int member = at.words.x + row / args.group;
    const int own_row = (member * args.num_kv_heads + at.head) * args.group + row % args.group;
    return prefix_row<S>(args, blockIdx.x, origin, row, own_row);
  };
#pragma unroll
  for (int h = 0; h < P::kHeadTiles; ++h) {
    float l = run.l[h];
    l += __shfl_xor_sync(kFullWarp, l, 1);
    l += __shfl_xor_sync(kFullWarp, l, 2);
    const int own = row0 + 8 * h + g;
    if (t == 0 && own < num_rows)
      args.prefix_ml[place(own)] = make_float2(run.m[h] * args.exp_scale, l);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = row0 + 8 * h + 2 * t + (e & 1);
      if (row >= num_rows) continue;
      float* o = args.prefix_o + place(row) * S::kHeadDim;
#pragma unroll
      for (int j = 0; j < S::kDimTiles; ++j) o[output_dim<P>(j, g, e >= 2)] = run.o[j][h][e];
    }
  }
}

// The unit's part is stored: joins the members whose other parts have all come.
template <typename S>
__device__ __forceinline__ void finish_prefix(const Args& args, const PrefixCursor& at,
                                              const int32_t* share, const int32_t* members) {
  __shared__ bool last[S::kShareRows];
  constexpr int kQuads = S::kHeadDim / 4;
  const int2 unit = reinterpret_cast<const int2*>(
      share + share[kShareUnits])[at.block * args.num_kv_heads + at.head];
  __syncthreads();  // all rows are stored
  for (int i = threadIdx.x; i < at.words.y; i += S::kThreads) {
    const int join = (at.words.x + i) * args.num_kv_heads + at.head;
    last[i] = arrive(args.joins + join, unit.y + 1);
  }
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < prefix_rows<S>(args, at) * kQuads; i += S::kThreads) {
    const int row = i / kQuads;
    const int place = row / args.group;
    if (!last[place]) continue;
    const int member = at.words.x + place;
    const int head = row - place * args.group;
    const int own_row = (member * args.num_kv_heads + at.head) * args.group + head;
    Unit out;
    out.token = members[member * kMemberWords + kMemberSeq];
    out.head = at.head * args.group;
    store_output<S>(args, out, head, i % kQuads,
                    join_member<S>(args, unit, row, own_row, i % kQuads));
  }
}

// A CTA's whole run of prefix units. Its KV is older than this step: only queries must be waited
// for.
template <typename S>
__device__ __forceinline__ void run_prefix(const Args& args, const Record& record, uint8_t* smem) {
  using P = PrefixShape<S>;
  static_assert(P::kRowStride == S::kRowStride);
  constexpr uint32_t kRoundBytes = S::kWarps * S::kTileBytes;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int num_rounds = record.num_tiles;
  const int32_t* share = record.share_section();
  const int32_t* members = share + share[kShareMembers];
  const uint32_t base = ptx::smem_address(smem);

  PrefixCursor fetch;
  fetch.start(record);
  const auto copy_round = [&](const Located& tile, int stage) {
    const uint32_t k = base + stage * (2 * kRoundBytes) + warp * S::kTileBytes;
    copy_pair<S>(args, tile_address<S>(args, tile), tile.visible, k, k + kRoundBytes, lane);
  };
  copy_round(locate_prefix<S>(args, fetch, 0, num_rounds, warp, lane), 0);
  Located next = locate_prefix<S>(args, fetch, 1, num_rounds, warp, lane);
  ptx::grid_wait();
  ptx::grid_launch();
  clear_padding<S>(args);

  PrefixCursor at;
  at.start(record);
  while (true) {
    Queries<P> q;
    load_rows<S>(args, at, members, 16 * warp, lane, q);
    convert_queries(q, args.is_bf16);
    Running<P> run;
    run.reset();
    for (int place = at.begin; place < at.end; ++place) {
      ptx::cp_async_wait<0>();
      __syncthreads();  // the round has landed, and the one before has been read
      copy_round(next, (place + 1) & 1);
      next = locate_prefix<S>(args, fetch, place + 2, num_rounds, warp, lane);
      if (16 * warp >= prefix_rows<S>(args, at)) continue;
      const uint32_t k = base + (place & 1) * (2 * kRoundBytes);
      run_round<S>(args, q, run, k, k + kRoundBytes, lane);
    }
    int origin = blockIdx.x;
    if (at.begin == 0) origin = load_record(args).origin;
    store_rows<S>(args, at, run, origin, 16 * warp, lane);
    finish_prefix<S>(args, at, share, members);
    if (at.end == num_rounds) return;
    at.next(args, num_rounds);
  }
}

}  // namespace srt::cuda::decode
