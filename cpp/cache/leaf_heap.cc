#include "cache/leaf_heap.h"

#include "core/error.h"

namespace srt {

void LeafHeap::put(size_t at, Item item) {
  items_[at] = item;
  place_[static_cast<size_t>(item.node)] = static_cast<int32_t>(at);
}

void LeafHeap::push(NodeId node, uint64_t key) {
  SRT_CHECK(!contains(node), "the leaf already waits for eviction");
  const auto i = static_cast<size_t>(node);
  if (i >= place_.size()) place_.resize(i + 1, kAbsent);
  items_.push_back({key, node});
  place_[i] = static_cast<int32_t>(items_.size() - 1);
  sift_up(items_.size() - 1);
}

void LeafHeap::erase(NodeId node) {
  SRT_CHECK(contains(node), "the leaf does not wait for eviction");
  const auto at = static_cast<size_t>(place_[static_cast<size_t>(node)]);
  place_[static_cast<size_t>(node)] = kAbsent;
  const Item last = items_.back();
  items_.pop_back();
  if (at == items_.size()) return;
  put(at, last);
  sift_up(at);
  sift_down(static_cast<size_t>(place_[static_cast<size_t>(last.node)]));
}

void LeafHeap::update(NodeId node, uint64_t key) {
  SRT_CHECK(contains(node), "the leaf does not wait for eviction");
  const auto at = static_cast<size_t>(place_[static_cast<size_t>(node)]);
  items_[at].key = key;
  sift_up(at);
  sift_down(static_cast<size_t>(place_[static_cast<size_t>(node)]));
}

void LeafHeap::sift_up(size_t at) {
  const Item item = items_[at];
  while (at > 0) {
    const size_t parent = (at - 1) / 2;
    if (items_[parent].key <= item.key) break;
    put(at, items_[parent]);
    at = parent;
  }
  put(at, item);
}

void LeafHeap::sift_down(size_t at) {
  const Item item = items_[at];
  for (;;) {
    size_t child = 2 * at + 1;
    if (child >= items_.size()) break;
    if (child + 1 < items_.size() && items_[child + 1].key < items_[child].key) ++child;
    if (item.key <= items_[child].key) break;
    put(at, items_[child]);
    at = child;
  }
  put(at, item);
}

}  // namespace srt
