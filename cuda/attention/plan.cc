#include "attention/plan.h"

#include <algorithm>

namespace srt::cuda {
namespace {

// The line of tiles, cut into `count` pieces: the first `longer` have quota + 1 tiles.
struct Cuts {
  int64_t count;
  int64_t quota;
  int64_t longer;

  int64_t begin(int64_t piece) const { return piece * quota + std::min(piece, longer); }
  int64_t piece_of(int64_t tile) const {
    const int64_t split = longer * (quota + 1);
    return tile < split ? tile / (quota + 1) : longer + (tile - split) / quota;
  }
};

Cuts make_cuts(int64_t num_tiles, int64_t min_tiles, const DecodePlanShape& shape) {
  const int64_t wanted = (num_tiles + min_tiles - 1) / min_tiles;
  const int64_t count = std::min<int64_t>(shape.num_ctas, wanted);
  return {count, num_tiles / count, num_tiles % count};
}

// Walks the line sequence by sequence.
struct Walk {
  const int32_t* seqs;
  const DecodePlanShape& shape;
  int seq = 0;
  int64_t base = 0;  // place of the sequence's first tile in the line
  TileRange tiles;

  Walk(const int32_t* records, const DecodePlanShape& plan)
      : seqs(records), shape(plan), tiles(tiles_of(len())) {}

  int row() const { return seqs[seq * message::kSeqWords + message::kSeqRow]; }
  int len() const { return seqs[seq * message::kSeqWords + message::kSeqLen]; }
  TileRange tiles_of(int seq_len) const {
    return decode_tiles(seq_len, shape.window_left, shape.tile_tokens);
  }
  int64_t size() const { return static_cast<int64_t>(tiles.count) * shape.num_head_blocks; }
  void seek(int64_t place) {
    while (place >= base + size()) {
      base += size();
      ++seq;
      tiles = tiles_of(len());
    }
  }
};

int64_t count_tiles(const int32_t* seqs, int num_decode, const DecodePlanShape& shape) {
  int64_t total = 0;
  for (int i = 0; i < num_decode; ++i) {
    const int len = seqs[i * message::kSeqWords + message::kSeqLen];
    total += decode_tiles(len, shape.window_left, shape.tile_tokens).count;
  }
  return total * shape.num_head_blocks;
}

// A CTA's least number of tiles: few parts of a unit are joined faster than many.
int64_t least_tiles(const int32_t* seqs, int num_decode, const DecodePlanShape& shape) {
  if (shape.max_parts == 0) return shape.min_tiles;
  int longest = 0;
  for (int i = 0; i < num_decode; ++i) {
    const int len = seqs[i * message::kSeqWords + message::kSeqLen];
    longest = std::max(longest, decode_tiles(len, shape.window_left, shape.tile_tokens).count);
  }
  return std::max(shape.min_tiles, (longest + shape.max_parts - 1) / shape.max_parts);
}

void write_record(const Walk& walk, const Cuts& cuts, int cta, int32_t* record) {
  const int64_t begin = cuts.begin(cta);
  const int64_t end = cuts.begin(cta + 1);
  const int64_t offset = begin - walk.base;
  const int64_t block = offset / walk.tiles.count;
  const int64_t tile = offset - block * walk.tiles.count;
  const int64_t unit_begin = begin - tile;
  const int64_t unit_end = unit_begin + walk.tiles.count;
  const int64_t origin = tile == 0 ? cta : cuts.piece_of(unit_begin);
  const int64_t last = unit_end <= end ? cta : cuts.piece_of(unit_end - 1);
  const int64_t parts = last - origin + 1;
  record[kWorkSeq] = walk.seq;
  record[kWorkBlock] = static_cast<int32_t>(block);
  record[kWorkTile] = static_cast<int32_t>(walk.tiles.first + tile);
  record[kWorkNumTiles] = static_cast<int32_t>(end - begin);
  record[kWorkRow] = walk.row();
  record[kWorkLen] = walk.len();
  record[kWorkOrigin] = static_cast<int32_t>(origin);
  record[kWorkParts] = static_cast<int32_t>(parts);
  record[kWorkLastParts] = 1;
  if (origin == cta - 1) record[kWorkLastParts - kWorkWords] = static_cast<int32_t>(parts);
}

}  // namespace

void plan_decode(const int32_t* seqs, int num_decode, const DecodePlanShape& shape,
                 int32_t* records) {
  std::fill_n(records, static_cast<int64_t>(shape.num_ctas) * kWorkWords, 0);
  if (num_decode == 0) return;
  const Cuts cuts =
      make_cuts(count_tiles(seqs, num_decode, shape), least_tiles(seqs, num_decode, shape), shape);
  Walk walk(seqs, shape);
  for (int cta = 0; cta < cuts.count; ++cta) {
    walk.seek(cuts.begin(cta));
    write_record(walk, cuts, cta, records + static_cast<int64_t>(cta) * kWorkWords);
  }
}

}  // namespace srt::cuda
