// A binary min-heap of node numbers that knows where each node stands: the eviction order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace srt {

class LeafHeap {
 public:
  using NodeId = int32_t;

  bool empty() const { return items_.empty(); }
  size_t size() const { return items_.size(); }
  NodeId top() const { return items_.front().node; }
  bool contains(NodeId node) const {
    const auto i = static_cast<size_t>(node);
    return i < place_.size() && place_[i] != kAbsent;
  }

  void push(NodeId node, uint64_t key);    // O(log n); absent before
  void erase(NodeId node);                 // O(log n); present before
  void update(NodeId node, uint64_t key);  // O(log n); present before

 private:
  struct Item {
    uint64_t key;
    NodeId node;
  };
  static constexpr int32_t kAbsent = -1;

  void put(size_t at, Item item);
  void sift_up(size_t at);
  void sift_down(size_t at);

  std::vector<Item> items_;
  std::vector<int32_t> place_;  // node -> index in items_
};

}  // namespace srt
