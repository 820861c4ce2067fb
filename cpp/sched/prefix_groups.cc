#include "sched/prefix_groups.h"

#include <algorithm>

namespace srt {

RadixTree::NodeId PrefixGrouper::best_node(const RadixTree& tree, NodeId leaf,
                                           size_t min_pages) const {
  NodeId best = RadixTree::kNone;
  size_t most_saved = 0;
  for (NodeId n = leaf; n != RadixTree::kNone && tree.end_page(n) >= min_pages;
       n = tree.parent(n)) {
    const auto others = static_cast<size_t>(num_readers_[static_cast<size_t>(n)] - 1);
    const size_t saved = others * tree.end_page(n);
    if (saved <= most_saved) continue;
    most_saved = saved;
    best = n;
  }
  return best;
}

void PrefixGrouper::group(const RadixTree& tree, std::span<const BatchItem> items,
                          int32_t min_pages, StepPlan& plan) {
  const auto num_decode = static_cast<size_t>(plan.num_decode);
  plan.prefix_groups.assign(num_decode, -1);
  plan.prefix_pages.assign(num_decode, 0);
  if (num_readers_.size() < tree.num_node_ids()) num_readers_.resize(tree.num_node_ids(), 0);
  const auto for_each_path_node = [&](auto visit) {
    for (const BatchItem& item : items.first(num_decode)) {
      NodeId n = item.seq->lock.node();
      for (; n != RadixTree::kNone; n = tree.parent(n)) visit(num_readers_[static_cast<size_t>(n)]);
    }
  };
  for_each_path_node([](int32_t& readers) { ++readers; });
  members_.clear();
  for (size_t i = 0; i < num_decode; ++i) {
    const NodeId node = best_node(tree, items[i].seq->lock.node(), static_cast<size_t>(min_pages));
    if (node != RadixTree::kNone) members_.emplace_back(node, static_cast<int32_t>(i));
  }
  for_each_path_node([](int32_t& readers) { readers = 0; });
  std::sort(members_.begin(), members_.end());
  int32_t num_groups = 0;
  for (size_t begin = 0, end = 0; begin < members_.size(); begin = end) {
    const NodeId node = members_[begin].first;
    while (end < members_.size() && members_[end].first == node) ++end;
    if (end - begin < 2) continue;
    for (size_t i = begin; i < end; ++i) {
      const auto decode = static_cast<size_t>(members_[i].second);
      plan.prefix_groups[decode] = num_groups;
      plan.prefix_pages[decode] = static_cast<int32_t>(tree.end_page(node));
    }
    ++num_groups;
  }
  plan.num_prefix_groups = num_groups;
}

}  // namespace srt
