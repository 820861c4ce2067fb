// Which decodes of a step read the same locked prefix: what cascade attention can read once.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "cache/radix_tree.h"
#include "sched/batch.h"

namespace srt {

class PrefixGrouper {
 public:
  // Fills plan.prefix_groups and plan.prefix_pages for the decodes that head `items`. A sequence
  // joins the node on its locked path, at least `min_pages` deep, whose sharing saves most page
  // reads; groups of one are dissolved. O(decodes * depth of their paths).
  void group(const RadixTree& tree, std::span<const BatchItem> items, int32_t min_pages,
             StepPlan& plan);

 private:
  using NodeId = RadixTree::NodeId;

  NodeId best_node(const RadixTree& tree, NodeId leaf, size_t min_pages) const;

  std::vector<int32_t> num_readers_;                 // by node; zero between calls
  std::vector<std::pair<NodeId, int32_t>> members_;  // node, decode; scratch
};

}  // namespace srt
