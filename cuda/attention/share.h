// Which decodes of a step read a shared prefix together, and where that stands in the plan.
//
// The members of a prefix group are cut into *row blocks*: as many members as fit share_rows query
// heads of a KV head. A prefix unit is one (row block, KV head): its KV is read once for all of the
// block's rows. The rest of each member's KV stays a unit of the sequence's own; whoever arrives
// last joins both. A group whose sharing does not pay is left alone.
#pragma once

#include <cstdint>
#include <span>

#include "attention/plan.h"

namespace srt::cuda {

constexpr int kMaxSharers = 1024;  // members of a step that the workspace has room for

// The share section: this header, then the parts that it names, in words from its start.
enum ShareWord : int {
  kShareBlocks = 0,  // [num_blocks]: ShareBlockWord
  kShareMembers,     // [num_members]: ShareMemberWord
  kShareUnits,  // [num_blocks * num_kv_heads]: CTA in which the unit begins, CTAs that share it
  kShareNumBlocks,
  kShareSeqs,  // [num_decode + 1]: tiles that another reads for the sequence, its member or -1
};
enum ShareBlockWord : int {
  kBlockFirstMember = 0,
  kBlockNumMembers,
  kBlockNumRounds,
  kBlockRow,  // of the page table, of any member
  kBlockWords = 4,
};
enum ShareMemberWord : int { kMemberSeq = 0, kMemberBlock, kMemberWords = 2 };
enum ShareUnitWord : int { kUnitOrigin = 0, kUnitParts, kUnitWords = 2 };
enum ShareSeqWord : int { kSeqSkipTiles = 0, kSeqMember, kShareSeqWords = 2 };

// By decode: its group (-1: none), and how many pages its group shares.
struct PrefixGroups {
  std::span<const int32_t> groups;
  std::span<const int32_t> pages;
  int page_size = 1;
};

// The most words of a share section of so many decodes.
int64_t max_share_words(int num_decode, const DecodePlanShape& shape);

// Writes the share section, but for its units, and returns its words; 0: sharing pays nowhere.
// O(num_decode + members).
int64_t plan_share(const int32_t* seqs, int num_decode, const DecodePlanShape& shape,
                   const PrefixGroups& prefixes, int32_t* share);

}  // namespace srt::cuda
