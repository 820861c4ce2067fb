#include "cache/leaf_heap.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "core/error.h"

namespace srt {
namespace {

TEST(LeafHeap, AgreesWithASortedMapOverRandomOperations) {
  std::mt19937 random(3);
  LeafHeap heap;
  std::map<uint64_t, int32_t> by_key;
  std::map<int32_t, uint64_t> by_node;
  uint64_t clock = 0;
  for (int i = 0; i < 20'000; ++i) {
    const auto node = static_cast<int32_t>(random() % 50);
    const uint64_t key = (random() % 1000) * 100'000 + ++clock;
    if (!by_node.contains(node)) {
      heap.push(node, key);
    } else {
      by_key.erase(by_node[node]);
      if (random() % 2 == 0) {
        heap.erase(node);
        by_node.erase(node);
        continue;
      }
      heap.update(node, key);
    }
    by_node[node] = key;
    by_key[key] = node;
    ASSERT_EQ(heap.size(), by_key.size());
    ASSERT_EQ(heap.top(), by_key.begin()->second);
  }
}

TEST(LeafHeap, RefusesDoublePushAndUnknownErase) {
  LeafHeap heap;
  heap.push(4, 1);
  EXPECT_THROW(heap.push(4, 2), InternalError);
  EXPECT_THROW(heap.erase(3), InternalError);
}

}  // namespace
}  // namespace srt
