#include "attention/share.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace srt::cuda {
namespace {

constexpr int kMemberTiles = 2;  // the cost of joining a member's two parts, in tiles
// What two lines cost beside one, in tiles a CTA: 64 sequences that share 256 tokens by fours saved
// 19 and lost 3 us, where a group of 64 with 2048 tokens saved 240 and won 60 us.
constexpr int kFixedTiles = 48;

struct Group {
  int num_members = 0;
  int num_rounds = std::numeric_limits<int>::max();
};

int members_per_block(const DecodePlanShape& shape) { return shape.share_rows / shape.group; }

// Tiles of one head block that reading the group's prefix once saves.
double saved_tiles(const Group& group, const DecodePlanShape& shape) {
  const int per_block = members_per_block(shape);
  const int blocks = (group.num_members + per_block - 1) / per_block;
  const double tiles = static_cast<double>(group.num_rounds) * shape.min_tiles;
  const double shared = blocks * tiles * shape.round_weight + group.num_members * kMemberTiles;
  return tiles * group.num_members - shared;
}

int whole_rounds(int seq_len, int prefix_tokens, const DecodePlanShape& shape) {
  return std::min(prefix_tokens, seq_len - 1) / shape.round_tokens();
}

// The groups of a step by their number; those that do not pay have no members.
std::vector<Group> find_groups(const int32_t* seqs, int num_decode, const DecodePlanShape& shape,
                               const PrefixGroups& prefixes) {
  std::vector<Group> groups;
  for (int i = 0; i < num_decode; ++i) {
    if (prefixes.groups[i] < 0) continue;
    const auto id = static_cast<size_t>(prefixes.groups[i]);
    if (id >= groups.size()) groups.resize(id + 1);
    const int seq_len = seqs[i * message::kSeqWords + message::kSeqLen];
    ++groups[id].num_members;
    groups[id].num_rounds =
        std::min(groups[id].num_rounds,
                 whole_rounds(seq_len, prefixes.pages[i] * prefixes.page_size, shape));
  }
  int room = kMaxSharers;
  double saved = 0.0;
  for (Group& group : groups) {
    const double own = group.num_members == 0 ? 0.0 : saved_tiles(group, shape);
    if (group.num_members > room || own <= 0.0) group = {};
    if (group.num_members > 0) saved += own;
    room -= group.num_members;
  }
  if (saved * shape.num_head_blocks < kFixedTiles * static_cast<double>(shape.num_ctas)) return {};
  return groups;
}

}  // namespace

int64_t max_share_words(int num_decode, const DecodePlanShape& shape) {
  if (!shape.can_share()) return 0;
  const int64_t members = std::min(num_decode, kMaxSharers);
  // The blocks start 16-byte aligned, and none is without a member.
  return kShareSeqs + kShareSeqWords * (int64_t{num_decode} + 1) + 3 +
         members * (int{kBlockWords} + kMemberWords + kUnitWords * shape.num_head_blocks);
}

int64_t plan_share(const int32_t* seqs, int num_decode, const DecodePlanShape& shape,
                   const PrefixGroups& prefixes, int32_t* share) {
  if (!shape.can_share()) return 0;
  const std::vector<Group> groups = find_groups(seqs, num_decode, shape, prefixes);
  if (groups.empty()) return 0;
  const int per_block = members_per_block(shape);
  int num_members = 0;
  int num_blocks = 0;
  std::vector<int> next_member(groups.size());
  std::vector<int> first_block(groups.size());
  for (size_t g = 0; g < groups.size(); ++g) {
    next_member[g] = num_members;
    first_block[g] = num_blocks;
    num_members += groups[g].num_members;
    num_blocks += (groups[g].num_members + per_block - 1) / per_block;
  }
  if (num_blocks == 0) return 0;
  int32_t* const by_seq = share + kShareSeqs;
  const int blocks_at = (kShareSeqs + kShareSeqWords * (num_decode + 1) + 3) / 4 * 4;
  const int members_at = blocks_at + kBlockWords * num_blocks;
  const int units_at = members_at + kMemberWords * num_members;
  share[kShareBlocks] = blocks_at;
  share[kShareMembers] = members_at;
  share[kShareUnits] = units_at;
  share[kShareNumBlocks] = num_blocks;
  const std::vector<int> first_member = next_member;
  for (int i = 0; i <= num_decode; ++i) {  // the kernel reads one ahead
    by_seq[kShareSeqWords * i + kSeqSkipTiles] = 0;
    by_seq[kShareSeqWords * i + kSeqMember] = -1;
    if (i == num_decode || prefixes.groups[i] < 0) continue;
    const auto g = static_cast<size_t>(prefixes.groups[i]);
    if (groups[g].num_members == 0) continue;
    const int member = next_member[g]++;
    const int place = member - first_member[g];
    const int block = first_block[g] + place / per_block;
    by_seq[kShareSeqWords * i + kSeqSkipTiles] = groups[g].num_rounds * shape.min_tiles;
    by_seq[kShareSeqWords * i + kSeqMember] = member;
    share[members_at + kMemberWords * member + kMemberSeq] = i;
    share[members_at + kMemberWords * member + kMemberBlock] = block;
    if (place % per_block != 0) continue;
    int32_t* const words = share + blocks_at + kBlockWords * block;
    words[kBlockFirstMember] = member;
    words[kBlockNumMembers] = std::min(per_block, groups[g].num_members - place);
    words[kBlockNumRounds] = groups[g].num_rounds;
    words[kBlockRow] = seqs[i * message::kSeqWords + message::kSeqRow];
  }
  return units_at + int64_t{kUnitWords} * num_blocks * shape.num_head_blocks;
}

}  // namespace srt::cuda
