// Plans the items of attention.h and hands them to the threads.
//
// An item is a block of queries of one kv head. When there are too few items to keep the threads
// busy, each part of an item's keys becomes an item of its own, merged in the end.
#include "cpu/attention.h"

#include <vector>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace srt::cpu {
namespace {

constexpr int64_t kRowsPerItem = 48;    // queries times heads of a group
constexpr int64_t kItemsPerThread = 4;  // enough for the threads to even out

struct Plan {
  std::vector<AttentionItem> items;
  std::vector<AttentionItem> parts;  // work space of split_items
  std::vector<int64_t> groups;       // items [groups[g], groups[g + 1]) share their queries
  int64_t elements = 0;              // keys times rows, in all
};

void plan_sequence(const AttentionParams& p, int32_t seq, Plan& plan) {
  const int64_t q_len = p.q_indptr[seq + 1] - p.q_indptr[seq];
  const int64_t seq_len = p.seq_lens[seq];
  const int64_t group = p.q_heads / p.kv_heads;
  const int64_t block = std::max<int64_t>(1, kRowsPerItem / group);
  for (int64_t q = 0; q < q_len; q += block) {
    const int64_t q_end = std::min(q + block, q_len);
    const int64_t first_pos = seq_len - q_len + q;
    const int64_t key_end = p.causal ? seq_len - q_len + q_end : seq_len;
    const int64_t first_key =
        p.window_left >= 0 ? std::max<int64_t>(0, first_pos - p.window_left) : 0;
    const int64_t key_begin = first_key / kTileKeys * kTileKeys;
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      plan.items.push_back({seq, static_cast<int32_t>(h), static_cast<int32_t>(q),
                            static_cast<int32_t>(q_end), static_cast<int32_t>(key_begin),
                            static_cast<int32_t>(key_end), nullptr});
    }
    plan.elements += p.q_heads * (q_end - q) * (key_end - key_begin) * p.head_dim;
  }
}

int64_t num_rows(const AttentionParams& p, const AttentionItem& item) {
  return (item.q_end - item.q_begin) * (p.q_heads / p.kv_heads);
}

int64_t num_parts(const AttentionItem& item) {
  return std::max<int64_t>(1,
                           (item.key_end + kPartKeys - 1) / kPartKeys - item.key_begin / kPartKeys);
}

// Cuts items into their parts where there are few of them.
void split_items(const AttentionParams& p, int64_t threads, Plan& plan) {
  const bool split = static_cast<int64_t>(plan.items.size()) < threads * kItemsPerThread;
  plan.groups.assign(1, 0);
  size_t floats = 0;
  plan.parts.clear();
  for (const AttentionItem& item : plan.items) {
    const int64_t count = split ? num_parts(item) : 1;
    for (int64_t i = 0; i < count; ++i) plan.parts.push_back(item);
    plan.groups.push_back(static_cast<int64_t>(plan.parts.size()));
    if (count > 1) floats += static_cast<size_t>(count * num_rows(p, item) * (p.v_head_dim + 2));
  }
  float* next = floats == 0 ? nullptr : scratch(Scratch::kShared, floats);
  for (size_t g = 0; g + 1 < plan.groups.size(); ++g) {
    if (plan.groups[g + 1] - plan.groups[g] == 1) continue;
    int32_t boundary = plan.parts[static_cast<size_t>(plan.groups[g])].key_begin;
    for (int64_t i = plan.groups[g]; i < plan.groups[g + 1]; ++i) {
      AttentionItem& part = plan.parts[static_cast<size_t>(i)];
      part.key_begin = boundary;
      boundary = static_cast<int32_t>((boundary / kPartKeys + 1) * kPartKeys);
      part.key_end = std::min(part.key_end, boundary);
      part.partial = next;
      next += num_rows(p, part) * (p.v_head_dim + 2);
    }
  }
  plan.items.swap(plan.parts);
}

}  // namespace

void attention(const AttentionParams& p) {
  thread_local Plan plan;
  plan.items.clear();
  plan.elements = 0;
  for (int32_t seq = 0; seq < p.num_seqs; ++seq) plan_sequence(p, seq, plan);
  const int64_t threads = plan.elements < kForkElements ? 1 : omp_get_max_threads();
  split_items(p, threads, plan);

  const Kernels& k = kernels();
  const AttentionItem* items = plan.items.data();
  parallel_items(static_cast<int64_t>(plan.items.size()), plan.elements,
                 [&](int64_t i) { k.attention(p, items[i]); });
  const int64_t* groups = plan.groups.data();
  const auto num_groups = static_cast<int64_t>(plan.groups.size()) - 1;
  for (int64_t g = 0; g < num_groups; ++g) {
    const int64_t parts = groups[g + 1] - groups[g];
    if (parts > 1) k.merge_attention(p, items + groups[g], parts);
  }
}

}  // namespace srt::cpu
