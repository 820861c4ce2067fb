// The split-KV work list of a decode step: which KV tiles each CTA of the decode kernel reads.
//
// A *unit* is one (sequence, head block): the query heads of a block share one KV head. Its KV is
// cut into tiles of tile_tokens tokens at multiples of tile_tokens. All tiles of all units,
// sequence by sequence and head block by head block, form one line; CTA c reads the c-th of
// num_ctas pieces of equal length (within one tile), so every CTA reads the same number of bytes. A
// unit cut by a piece's end is finished by the last CTA to arrive at it.
//
// Where sequences share a prefix and reading it once pays (share.h), the first CTAs follow a line
// of prefix units instead, and the others a line of what each sequence has for itself.
#pragma once

#include <cstdint>

namespace srt::cuda {

// Words of a CTA's record in the work section of the step message. A prefix run counts rounds of
// round_tokens() tokens instead of tiles; its unit is one (row block, KV head).
enum WorkRecord : int {
  kWorkSeq = 0,    // the unit that the run begins in: sequence (prefix run: row block),
  kWorkBlock,      // head block (prefix run: KV head),
  kWorkTile,       // and tile within the sequence (counted from token 0)
  kWorkNumTiles,   // length of the run; 0: nothing to do
  kWorkRow,        // that sequence's page table row
  kWorkLen,        // and KV length (prefix run: rounds of the row block)
  kWorkOrigin,     // the CTA in which the first unit begins (this one, if not an earlier one)
  kWorkParts,      // CTAs that share the first unit (1: this one alone)
  kWorkLastParts,  // CTAs that share the last unit, where it is not also the first
  kWorkIsPrefix,   // 1: the run is of prefix units
  kWorkShare,      // the plan's share section (share.h), in words from its records; 0: none
  kWorkWords = 12,
};

// Words of the step message that the plan reads and the kernel follows. The binding holds them
// against the message's own declaration.
namespace message {
enum Word : int { kNumDecode = 2, kNumTokens = 3, kNumWork = 7, kOffSeqs = 8, kOffWork = 13 };
enum SeqWord : int { kSeqRow = 0, kSeqLen = 3, kSeqWords = 8 };
constexpr int kMaxDrafts = 15;  // decodes of one sequence in a step beside the first
}  // namespace message

struct DecodePlanShape {
  int num_ctas = 0;         // the kernel's grid: records to write
  int num_head_blocks = 0;  // of one sequence
  int tile_tokens = 16;
  int min_tiles = 1;     // a CTA that works at all gets at least this many, while there are enough
  int max_parts = 0;     // about so many CTAs share a unit at most; 0: no limit
  int window_left = -1;  // as in Scoring
  int share_rows = 0;    // query heads of a row block of prefix units; 0: no kernel for them
  int group = 1;         // query heads of a KV head
  // What a round costs, per tile of it, in tiles that a sequence reads for itself: the bytes are
  // the same, the arithmetic is many times theirs (docs/kernels.md).
  double round_weight = 1.5;

  int round_tokens() const { return tile_tokens * min_tiles; }
  bool can_share() const { return share_rows > 0 && window_left < 0; }
};

// The first tile that a sequence of seq_len tokens reads, and how many.
struct TileRange {
  int first;
  int count;
};
#ifdef __CUDACC__
__host__ __device__
#endif
    constexpr TileRange decode_tiles(int seq_len, int window_left, int tile_tokens) {
  const int begin = window_left >= 0 && seq_len > window_left + 1 ? seq_len - window_left - 1 : 0;
  const int first = begin / tile_tokens;
  return {first, (seq_len + tile_tokens - 1) / tile_tokens - first};
}

// Writes shape.num_ctas records for the first num_decode sequence records of a step message.
// share: the plan's share section, share_offset words behind the records, its units still to be
// filled in; null: nothing is shared. O(num_decode + num_ctas + units).
void plan_decode(const int32_t* seqs, int num_decode, const DecodePlanShape& shape,
                 int32_t* records, int32_t* share = nullptr, int share_offset = 0);

}  // namespace srt::cuda
