#include "attention/plan.h"

#include <algorithm>
#include <cmath>

#include "attention/share.h"

namespace srt::cuda {
namespace {

// A line of tiles (or rounds), cut into `count` pieces for the CTAs from `first` on: the first
// `longer` have quota + 1 tiles.
struct Cuts {
  int first;
  int64_t count;
  int64_t quota;
  int64_t longer;

  Cuts(int first_cta, int num_ctas, int64_t num_tiles, int min_tiles)
      : first(first_cta),
        count(std::min<int64_t>(num_ctas, (num_tiles + min_tiles - 1) / min_tiles)),
        quota(num_tiles / std::max<int64_t>(count, 1)),
        longer(num_tiles % std::max<int64_t>(count, 1)) {}

  int end_cta() const { return first + static_cast<int>(count); }
  int64_t begin(int64_t cta) const {
    const int64_t piece = cta - first;
    return piece * quota + std::min(piece, longer);
  }
  int64_t cta_of(int64_t tile) const {
    const int64_t split = longer * (quota + 1);
    return first + (tile < split ? tile / (quota + 1) : longer + (tile - split) / quota);
  }
};

// Where a CTA's run begins: unit `seq`, `block`, which holds places [begin, begin + tiles.count).
struct Start {
  int64_t begin;
  int seq;
  int64_t block;
  TileRange tiles;
  int row;
  int len;
};

// A CTA's least number of tiles: few parts of a unit are joined faster than many.
int least_tiles(const int32_t* seqs, int num_decode, const DecodePlanShape& shape) {
  if (shape.max_parts == 0) return shape.min_tiles;
  int longest = 0;
  for (int i = 0; i < num_decode; ++i) {
    const int len = seqs[i * message::kSeqWords + message::kSeqLen];
    longest = std::max(longest, decode_tiles(len, shape.window_left, shape.tile_tokens).count);
  }
  return std::max(shape.min_tiles, (longest + shape.max_parts - 1) / shape.max_parts);
}

void write_record(const Start& unit, const Cuts& cuts, int cta, int32_t* record) {
  const int64_t begin = cuts.begin(cta);
  const int64_t end = cuts.begin(cta + 1);
  const int64_t tile = begin - unit.begin;
  const int64_t unit_end = unit.begin + unit.tiles.count;
  const int64_t origin = tile == 0 ? cta : cuts.cta_of(unit.begin);
  const int64_t last = unit_end <= end ? cta : cuts.cta_of(unit_end - 1);
  const int64_t parts = last - origin + 1;
  record[kWorkSeq] = unit.seq;
  record[kWorkBlock] = static_cast<int32_t>(unit.block);
  record[kWorkTile] = static_cast<int32_t>(unit.tiles.first + tile);
  record[kWorkNumTiles] = static_cast<int32_t>(end - begin);
  record[kWorkRow] = unit.row;
  record[kWorkLen] = unit.len;
  record[kWorkOrigin] = static_cast<int32_t>(origin);
  record[kWorkParts] = static_cast<int32_t>(parts);
  record[kWorkLastParts] = 1;
  if (origin == cta - 1) record[kWorkLastParts - kWorkWords] = static_cast<int32_t>(parts);
}

// The line of what each sequence reads for itself, walked sequence by sequence.
struct Line {
  const int32_t* seqs;
  const int32_t* by_seq;  // of the share section; null: nothing is shared
  const DecodePlanShape& shape;
  int seq = 0;
  int64_t base = 0;  // place of the sequence's first tile in the line

  int row(int i) const { return seqs[i * message::kSeqWords + message::kSeqRow]; }
  int len(int i) const { return seqs[i * message::kSeqWords + message::kSeqLen]; }
  TileRange tiles(int i) const {
    TileRange range = decode_tiles(len(i), shape.window_left, shape.tile_tokens);
    const int skip = by_seq == nullptr ? 0 : by_seq[kShareSeqWords * i + kSeqSkipTiles];
    return {range.first + skip, range.count - skip};
  }
  int64_t size(int i) const { return int64_t{tiles(i).count} * shape.num_head_blocks; }
  int64_t total(int num_decode) const {
    int64_t sum = 0;
    for (int i = 0; i < num_decode; ++i) sum += size(i);
    return sum;
  }
  Start seek(int64_t place) {
    while (place >= base + size(seq)) base += size(seq++);
    const TileRange own = tiles(seq);
    const int64_t block = (place - base) / own.count;
    return {base + block * own.count, seq, block, own, row(seq), len(seq)};
  }
};

// The line of prefix units, block by block and KV head by KV head.
struct PrefixLine {
  int32_t* share;
  const DecodePlanShape& shape;
  int block = 0;
  int64_t base = 0;

  const int32_t* words(int i) const { return share + share[kShareBlocks] + kBlockWords * i; }
  int rounds(int i) const { return words(i)[kBlockNumRounds]; }
  int64_t size(int i) const { return int64_t{rounds(i)} * shape.num_head_blocks; }
  int64_t total() const {
    int64_t sum = 0;
    for (int i = 0; i < share[kShareNumBlocks]; ++i) sum += size(i);
    return sum;
  }
  Start seek(int64_t place) {
    while (place >= base + size(block)) base += size(block++);
    const int count = rounds(block);
    const int64_t head = (place - base) / count;
    return {base + head * count, block, head, {0, count}, words(block)[kBlockRow], count};
  }
  // Who holds each unit, for those who join it.
  void write_units(const Cuts& cuts) const {
    int32_t* unit = share + share[kShareUnits];
    int64_t begin = 0;
    for (int i = 0; i < share[kShareNumBlocks]; ++i) {
      for (int head = 0; head < shape.num_head_blocks; ++head, unit += kUnitWords) {
        const int64_t origin = cuts.cta_of(begin);
        begin += rounds(i);
        unit[kUnitOrigin] = static_cast<int32_t>(origin);
        unit[kUnitParts] = static_cast<int32_t>(cuts.cta_of(begin - 1) - origin + 1);
      }
    }
  }
};

// The CTAs that follow the prefix line, so that both lines end together.
int prefix_ctas(int64_t num_rounds, int64_t num_tiles, const DecodePlanShape& shape) {
  const double prefix = static_cast<double>(num_rounds) * shape.min_tiles * shape.round_weight;
  const double part = prefix / (prefix + static_cast<double>(num_tiles));
  return std::clamp(static_cast<int>(std::lround(part * shape.num_ctas)), 1, shape.num_ctas - 1);
}

}  // namespace

void plan_decode(const int32_t* seqs, int num_decode, const DecodePlanShape& shape,
                 int32_t* records, int32_t* share, int share_offset) {
  std::fill_n(records, static_cast<int64_t>(shape.num_ctas) * kWorkWords, 0);
  if (num_decode == 0) return;
  Line line{seqs, share == nullptr ? nullptr : share + kShareSeqs, shape};
  const int64_t num_tiles = line.total(num_decode);
  int first = 0;
  if (share != nullptr) {
    PrefixLine prefixes{share, shape};
    const int64_t num_rounds = prefixes.total();
    const Cuts cuts(0, prefix_ctas(num_rounds, num_tiles, shape), num_rounds, 1);
    for (int cta = 0; cta < cuts.end_cta(); ++cta) {
      int32_t* const record = records + int64_t{cta} * kWorkWords;
      write_record(prefixes.seek(cuts.begin(cta)), cuts, cta, record);
      record[kWorkIsPrefix] = 1;
    }
    prefixes.write_units(cuts);
    first = cuts.end_cta();
  }
  const Cuts cuts(first, shape.num_ctas - first, num_tiles, least_tiles(seqs, num_decode, shape));
  for (int cta = first; cta < cuts.end_cta(); ++cta)
    write_record(line.seek(cuts.begin(cta)), cuts, cta, records + int64_t{cta} * kWorkWords);
  if (share == nullptr) return;
  for (int cta = 0; cta < cuts.end_cta(); ++cta)
    records[int64_t{cta} * kWorkWords + kWorkShare] = share_offset;
}

}  // namespace srt::cuda
