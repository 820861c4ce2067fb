// How a warp of the decode kernel finds its KV tiles and brings them into its ring of stages.
#pragma once

#include <cstdint>

#include "attention/decode_tile.cuh"
#include "attention/share.h"

namespace srt::cuda::decode {

// DecodeParams as the kernel wants them.
struct Args {
  const void* q;
  void* out;
  const char* k_pool;
  const char* v_pool;
  const int32_t* page_table;
  const int32_t* message;
  unsigned* arrivals;  // [num_ctas]: parts finished of the unit that begins in that CTA
  float2* part_ml;     // [2 * num_ctas, 8 * kHeadTiles]: maximum (in powers of two) and sum
  float* part_o;       // [2 * num_ctas, heads_per_block, head_dim], not yet divided by the sum
  // The same of prefix units, see prefix_row(); of what a member has for itself,
  // [kMaxSharers * num_kv_heads, group]; and how many of a member's parts have come, by KV head.
  float2* prefix_ml;
  float* prefix_o;
  float2* own_ml;
  float* own_o;
  unsigned* joins;  // [kMaxSharers * num_kv_heads]
  int64_t q_stride;
  int64_t out_stride;
  float* out_scales;  // out is e4m3 where set, see DecodeParams
  int64_t out_scale_stride;
  int64_t table_stride;
  int num_rows;
  int group;  // query heads of a KV head
  int heads_per_block;
  int blocks_per_kv;  // head blocks of a KV head
  int num_kv_heads;
  int num_head_blocks;  // of a sequence
  int log2_page;
  int window_left;
  int plan_offset;
  bool is_bf16;       // q and out
  float score_scale;  // of the raw product, before the soft cap
  float softcap;
  float exp_scale;  // from (capped) scores to exponents of two
  float v_scale;
};

// A CTA's record of the plan (WorkRecord), in registers: all of it comes in one round trip.
struct Record {
  const int32_t* at;
  int seq;
  int block;
  int tile;
  int num_tiles = 0;
  int row;
  int len;
  int origin;
  int parts;
  int last_parts;
  bool is_prefix;
  int share;

  // The plan's share section, where something is shared.
  __device__ __forceinline__ const int32_t* share_section() const {
    return at - blockIdx.x * kWorkWords + share;
  }
};
static_assert(kWorkSeq == 0 && kWorkBlock == 1 && kWorkTile == 2 && kWorkNumTiles == 3 &&
              kWorkRow == 4 && kWorkLen == 5 && kWorkOrigin == 6 && kWorkParts == 7 &&
              kWorkLastParts == 8 && kWorkIsPrefix == 9 && kWorkShare == 10 && kWorkWords == 12);

// num_tiles is 0 where the message has no plan.
__device__ __forceinline__ Record load_record(const Args& args) {
  const int32_t* msg = args.message;
  Record record;
  if (msg[message::kNumWork] == 0) return record;
  record.at = msg + msg[message::kOffWork] + args.plan_offset + blockIdx.x * kWorkWords;
  const int4 a = reinterpret_cast<const int4*>(record.at)[0];
  const int4 b = reinterpret_cast<const int4*>(record.at)[1];
  const int4 c = reinterpret_cast<const int4*>(record.at)[2];
  record.seq = a.x;
  record.block = a.y;
  record.tile = a.z;
  record.num_tiles = a.w;
  record.row = b.x;
  record.len = b.y;
  record.origin = b.z;
  record.parts = b.w;
  record.last_parts = c.x;
  record.is_prefix = c.y != 0;
  record.share = c.z;
  return record;
}

// A CTA's run of tiles, and a position in it. begin and end count along the run.
template <int kTokens, bool kCanShare>
struct Cursor {
  int share;  // where ShareSeqWord by sequence stands, in words behind `seqs`; 0: nothing is shared
  int seq;
  int block;
  int row;
  int len;
  int next_row;  // of the sequence after: read early, for a global load takes microseconds under
                 // load
  int next_len;
  int skip;   // tiles at the sequence's start that prefix units read for it
  int begin;  // the unit's part of the run
  int end;
  int tile0;  // the sequence's tile that stands at `begin`

  __device__ __forceinline__ void start(const Args& args, const int32_t* seqs,
                                        const Record& record) {
    share = !kCanShare || record.share == 0
                ? 0
                : static_cast<int>(record.share_section() + kShareSeqs - seqs);
    seq = record.seq;
    block = record.block;
    row = record.row;
    len = record.len;
    skip = share_word(seqs, kSeqSkipTiles, 0);
    begin = 0;
    tile0 = record.tile;
    const TileRange tiles = decode_tiles(len, args.window_left, kTokens);
    end = min(record.num_tiles, tiles.first + tiles.count - tile0);
    peek(seqs);
  }

  // The message goes on behind its last sequence, so reading one too many is harmless.
  __device__ __forceinline__ void peek(const int32_t* seqs) {
    const int32_t* record = seqs + (seq + 1) * message::kSeqWords;
    next_row = record[message::kSeqRow];
    next_len = record[message::kSeqLen];
  }

  __device__ __forceinline__ int share_word(const int32_t* seqs, int word, int otherwise) const {
    return kCanShare && share != 0 ? seqs[share + seq * kShareSeqWords + word] : otherwise;
  }

  __device__ __forceinline__ void next(const Args& args, const int32_t* seqs, int num_tiles) {
    if (++block == args.num_head_blocks) {
      block = 0;
      ++seq;
      row = next_row;
      len = next_len;
      skip = share_word(seqs, kSeqSkipTiles, 0);
      peek(seqs);
    }
    const TileRange tiles = decode_tiles(len, args.window_left, kTokens);
    tile0 = tiles.first + skip;
    begin = end;
    end = min(begin + tiles.count - skip, num_tiles);
  }

  // The sequence's place among those that share a prefix, or -1.
  __device__ __forceinline__ int member(const int32_t* seqs) const {
    return share_word(seqs, kSeqMember, -1);
  }

  // Tokens of the tile at `place` that the query sees: [x, y) of kTokens.
  __device__ __forceinline__ int2 visible(const Args& args, int place) const {
    const int token = (tile0 + place - begin) * kTokens;
    const int start = args.window_left >= 0 ? max(len - args.window_left - 1, 0) : 0;
    return make_int2(max(start - token, 0), min(len - token, kTokens));
  }
};

// A tile on its way: what its page table entry turns into addresses.
struct Located {
  int page;      // still being read
  int row;       // first row within the page, counted over its heads
  int2 visible;  // y is 0 past the end of the run
  bool is_new;   // may hold tokens that this step writes: the newest, and drafts before it
};

// The first 16-byte piece of a tile (or of a lane's token) as an index into the pool.
template <typename S>
__device__ __forceinline__ uint32_t tile_address(const Args& args, const Located& tile) {
  const auto rows = static_cast<uint32_t>(tile.page * args.num_kv_heads) << args.log2_page;
  return (rows + tile.row) * S::kChunks;
}

// Whether a tile lies within one page; otherwise every lane looks up the page of "its" token.
template <typename S>
__device__ __forceinline__ bool one_page(const Args& args) {
  return (1 << args.log2_page) >= S::kTokens;
}

// One K or V tile into `stage`, as one copy group (an empty one past the end of the run). Hidden
// rows become zeros: a probability of zero times NaN is NaN.
template <typename S>
__device__ __forceinline__ void copy_tile(const Args& args, const char* pool, uint32_t base,
                                          int2 visible, uint32_t stage, int lane) {
  constexpr int kPieces = S::kTokens * S::kChunks;
  static_assert(kPieces % 32 == 0);
  if (32 % S::kChunks == 0 && one_page<S>(args) && visible.x <= 0 && visible.y >= S::kTokens) {
    // The usual case: a lane's pieces are constant steps apart.
    const char* from = pool + static_cast<uint64_t>(base + lane) * 16;
    const uint32_t to = stage + lane / S::kChunks * S::kRowStride + lane % S::kChunks * 16;
#pragma unroll
    for (int i = 0; i < kPieces; i += 32)
      ptx::cp_async_16(to + i / S::kChunks * S::kRowStride, from + i * 16, true);
  } else if (visible.y > 0) {
    const bool contiguous = one_page<S>(args);
#pragma unroll 2
    for (int i = 0; i < kPieces; i += 32) {
      const int row = (i + lane) / S::kChunks;
      const int chunk = (i + lane) % S::kChunks;
      const uint32_t first =
          contiguous ? base + row * S::kChunks : __shfl_sync(kFullWarp, base, row);
      ptx::cp_async_16(stage + row * S::kRowStride + chunk * 16,
                       pool + static_cast<uint64_t>(first + chunk) * 16,
                       row >= visible.x && row < visible.y);
    }
  }
  ptx::cp_async_commit();
}

// The K and the V tile of a place.
template <typename S>
__device__ __forceinline__ void copy_pair(const Args& args, uint32_t base, int2 visible, uint32_t k,
                                          uint32_t v, int lane) {
#pragma unroll 1
  for (int i = 0; i < 2; ++i)
    copy_tile<S>(args, i == 0 ? args.k_pool : args.v_pool, base, visible, i == 0 ? k : v, lane);
}

// Runs ahead of the arithmetic: locate() starts the page table read of a tile, and only a tile
// later copy() starts its copies, so that neither latency is waited for.
template <typename S>
class Fetcher {
 public:
  __device__ __forceinline__ Fetcher(const Args& args, const int32_t* seqs, const Record& record,
                                     int lane)
      : seqs_(seqs), num_tiles_(record.num_tiles), lane_(lane) {
    cursor_.start(args, seqs, record);
  }

  __device__ __forceinline__ Located locate(const Args& args, int place) {
    Located tile{0, 0, {0, 0}, false};
    if (place >= num_tiles_) return tile;
    while (place >= cursor_.end) cursor_.next(args, seqs_, num_tiles_);
    tile.visible = cursor_.visible(args, place);
    const int first = (cursor_.tile0 + place - cursor_.begin) * S::kTokens;
    tile.is_new = first + S::kTokens >= cursor_.len - message::kMaxDrafts;
    const int own = min(max(lane_ % S::kTokens, tile.visible.x), tile.visible.y - 1);
    const int token = first + (one_page<S>(args) ? 0 : own);
    const int head = args.blocks_per_kv == 1 ? cursor_.block : cursor_.block / args.blocks_per_kv;
    tile.row = (head << args.log2_page) + (token & ((1 << args.log2_page) - 1));
    tile.page =
        __ldg(args.page_table + cursor_.row * args.table_stride + (token >> args.log2_page));
    return tile;
  }

  __device__ __forceinline__ uint32_t address(const Args& args, const Located& tile) const {
    return tile_address<S>(args, tile);
  }

  __device__ __forceinline__ void copy(const Args& args, const char* pool, uint32_t base,
                                       int2 visible, uint32_t stage) const {
    copy_tile<S>(args, pool, base, visible, stage, lane_);
  }

  __device__ __forceinline__ void copy_pair(const Args& args, const Located& tile, uint32_t k,
                                            uint32_t v) const {
    decode::copy_pair<S>(args, address(args, tile), tile.visible, k, v, lane_);
  }

 private:
  const int32_t* seqs_;
  int num_tiles_;
  int lane_;
  Cursor<S::kTokens, S::kCanShare> cursor_;
};

}  // namespace srt::cuda::decode
