#include "cache/radix_tree.h"

#include <gtest/gtest.h>

#include <string_view>
#include <utility>
#include <vector>

namespace srt {
namespace {

using Tokens = std::vector<TokenId>;
using Pages = std::vector<PageId>;
constexpr size_t kAll = 1000;

// A tree over its own pool, fed with letters: one token each.
struct Tree {
  explicit Tree(int32_t page_size = 1, int32_t num_pages = 100)
      : pool(num_pages), tree(pool, page_size), page_size(static_cast<size_t>(page_size)) {}

  Pages take(size_t n) {
    Pages pages;
    for (size_t i = 0; i < n; ++i) pages.push_back(pool.take());
    return pages;
  }
  // What a sequence that computed everything itself leaves behind.
  Pages insert(std::string_view text, std::string_view ns = "") {
    const Pages pages = take(text.size() / page_size);
    tree.insert(ns, RadixLock(), Tokens(text.begin(), text.end()), pages);
    tree.check_invariants();
    return pages;
  }
  std::pair<RadixLock, Pages> match(std::string_view text, std::string_view ns = "",
                                    size_t max_pages = kAll) {
    Pages pages;
    RadixLock lock = tree.match(ns, Tokens(text.begin(), text.end()), max_pages, pages);
    tree.check_invariants();
    EXPECT_EQ(lock.num_pages(), pages.size());
    return {std::move(lock), pages};
  }
  size_t cached(std::string_view text, std::string_view ns = "") const {
    return tree.peek(ns, Tokens(text.begin(), text.end())).num_pages;
  }

  PagePool pool;
  RadixTree tree;
  size_t page_size;
};

TEST(RadixTree, MatchesTheLongestPrefix) {
  Tree t;
  const Pages pages = t.insert("abcd");
  EXPECT_EQ(t.match("abcdef").second, pages);
  EXPECT_EQ(t.match("abx").second, Pages(pages.begin(), pages.begin() + 2));
  EXPECT_TRUE(t.match("xabcd").second.empty());
}

TEST(RadixTree, StopsAtTheAskedNumberOfPages) {
  Tree t;
  t.insert("abcd");
  EXPECT_EQ(t.match("abcd", "", 3).second.size(), 3U);
  EXPECT_TRUE(t.match("abcd", "", 0).second.empty());
}

TEST(RadixTree, SharesOnlyWholePages) {
  Tree t(2);
  t.insert("abcdef");
  EXPECT_EQ(t.cached("abcde"), 2U);
  EXPECT_EQ(t.cached("abcx"), 1U);
  EXPECT_EQ(t.cached("a"), 0U);
}

TEST(RadixTree, TellsChildrenApartThatShareTheirFirstToken) {
  Tree t(2);
  t.insert("abcd");
  t.insert("axcd");
  EXPECT_EQ(t.cached("abcd"), 2U);
  EXPECT_EQ(t.cached("axcd"), 2U);
}

TEST(RadixTree, KeepsNamespacesApart) {
  Tree t;
  t.insert("abc", "lora");
  EXPECT_EQ(t.cached("abc"), 0U);
  EXPECT_EQ(t.cached("abc", "lora"), 3U);
}

TEST(RadixTree, ForgetsANamespaceWithItsLastPage) {
  Tree t;
  t.insert("abc", "image");
  t.insert("abc");
  const size_t before = t.tree.num_nodes();
  EXPECT_EQ(t.tree.evict(3), 3U);
  EXPECT_EQ(t.tree.num_nodes(), before - 2);
  t.tree.check_invariants();
}

TEST(RadixTree, KeepsOneCopyOfWhatTwoComputed) {
  Tree t;
  const Pages first = t.insert("abcd");
  const int32_t num_free = t.pool.num_free();
  t.insert("abce");
  EXPECT_EQ(t.pool.num_free(), num_free - 1);
  const Pages got = t.match("abce").second;
  EXPECT_EQ(Pages(got.begin(), got.begin() + 3), Pages(first.begin(), first.begin() + 3));
}

TEST(RadixTree, PublishesBehindTheLockAndMovesIt) {
  Tree t;
  t.insert("ab");
  auto [lock, pages] = t.match("abcd");
  for (const PageId page : t.take(2)) pages.push_back(page);
  const Tokens tokens{'a', 'b', 'c', 'd'};
  EXPECT_TRUE(t.tree.publish("", lock, tokens, pages));
  EXPECT_EQ(lock.num_pages(), 4U);
  EXPECT_EQ(t.tree.num_evictable_pages(), 0U);
  t.tree.check_invariants();
}

TEST(RadixTree, LeavesItsPagesToWhoComesSecond) {
  Tree t;
  t.insert("ab");
  RadixLock lock;
  const Pages mine = t.take(2);
  EXPECT_FALSE(t.tree.publish("", lock, Tokens{'a', 'b'}, mine));
  EXPECT_EQ(lock.num_pages(), 0U);
  EXPECT_EQ(t.pool.use(mine[0]), PageUse::kOwned);
}

TEST(RadixTree, LockedPathsSurviveEviction) {
  Tree t;
  t.insert("abcd");
  t.insert("abxy");
  const RadixLock lock = t.match("abc").first;
  EXPECT_EQ(t.tree.num_evictable_pages(), 3U);
  EXPECT_EQ(t.tree.evict(kAll), 3U);
  EXPECT_EQ(t.cached("abcd"), 3U);
  t.tree.check_invariants();
}

TEST(RadixTree, ALockCoversItsPathAfterASplit) {
  Tree t;
  t.insert("abcd");
  const RadixLock deep = t.match("abcd").first;
  const RadixLock shallow = t.match("ab").first;
  EXPECT_EQ(deep.num_pages(), 4U);
  EXPECT_EQ(t.tree.evict(kAll), 0U);
}

TEST(RadixTree, AMovedLockHoldsOnce) {
  Tree t;
  t.insert("ab");
  RadixLock lock = t.match("ab").first;
  {
    const RadixLock moved = std::move(lock);
    EXPECT_EQ(t.tree.num_evictable_pages(), 0U);
  }
  EXPECT_EQ(t.tree.num_evictable_pages(), 2U);
  lock.release();
  t.tree.check_invariants();
}

TEST(RadixTree, EvictsTheLeastRecentlyUsedLeafFirst) {
  Tree t;
  t.insert("aa");
  t.insert("bb");
  t.insert("cc");
  t.match("aa");
  EXPECT_EQ(t.tree.evict(2), 2U);
  EXPECT_EQ(t.cached("bb"), 0U);
  EXPECT_EQ(t.cached("aa"), 2U);
  EXPECT_EQ(t.cached("cc"), 2U);
}

TEST(RadixTree, TrimsALeafFromItsEnd) {
  Tree t;
  t.insert("abcd");
  EXPECT_EQ(t.tree.evict(1), 1U);
  EXPECT_EQ(t.cached("abcd"), 3U);
  t.tree.check_invariants();
}

TEST(RadixTree, EvictsParentsThatBecameLeaves) {
  Tree t;
  t.insert("abcd");
  t.insert("abxy");
  EXPECT_EQ(t.tree.evict(kAll), 6U);
  EXPECT_EQ(t.tree.num_nodes(), 0U);
  EXPECT_EQ(t.pool.num_free(), t.pool.num_usable());
}

TEST(RadixTree, ItsVersionMovesWithItsContent) {
  Tree t;
  const uint64_t empty = t.tree.version();
  t.insert("ab");
  const uint64_t filled = t.tree.version();
  EXPECT_NE(filled, empty);
  t.match("ab");
  EXPECT_EQ(t.tree.version(), filled);
  t.tree.evict(1);
  EXPECT_NE(t.tree.version(), filled);
}

}  // namespace
}  // namespace srt
