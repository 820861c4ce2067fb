// Random traffic on the radix tree against a map from prefixes to pages.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cache/radix_tree.h"

namespace srt {
namespace {

using Prefix = std::pair<std::string, std::vector<TokenId>>;  // namespace, whole pages of tokens

// One entry per cached page, keyed by everything that its KV depends on.
class NaiveCache {
 public:
  struct Entry {
    PageId page = 0;
    uint64_t last_access = 0;
    int num_locks = 0;
  };

  explicit NaiveCache(size_t page_size) : page_size_(page_size) {}

  std::vector<PageId> match(const Prefix& key) const {
    std::vector<PageId> pages;
    for (size_t n = 1; const Entry* entry = find(key, n); ++n) pages.push_back(entry->page);
    return pages;
  }
  void touch(const Prefix& key, size_t num_pages) {
    if (num_pages > 0) ++clock_;
    for (size_t n = 1; n <= num_pages; ++n) entries_.at(cut(key, n)).last_access = clock_;
  }
  void lock(const Prefix& key, size_t num_pages, int by) {
    for (size_t n = 1; n <= num_pages; ++n) entries_.at(cut(key, n)).num_locks += by;
  }
  void put(const Prefix& key, size_t n, PageId page) { entries_[cut(key, n)].page = page; }

  // The page whose prefix nobody extends, unlocked, least recently used; 0 where there is none.
  PageId evict_one() {
    auto oldest = entries_.end();
    for (auto it = entries_.begin(); it != entries_.end(); ++it) {
      if (it->second.num_locks > 0 || is_extended(it)) continue;
      if (oldest == entries_.end() || it->second.last_access < oldest->second.last_access) {
        oldest = it;
      }
    }
    if (oldest == entries_.end()) return 0;
    const PageId page = oldest->second.page;
    entries_.erase(oldest);
    return page;
  }
  size_t size() const { return entries_.size(); }
  size_t num_evictable() const {
    return static_cast<size_t>(std::count_if(
        entries_.begin(), entries_.end(), [](const auto& e) { return e.second.num_locks == 0; }));
  }

 private:
  using Map = std::map<Prefix, Entry>;

  Prefix cut(const Prefix& key, size_t num_pages) const {
    const auto end = key.second.begin() + static_cast<ptrdiff_t>(num_pages * page_size_);
    return {key.first, {key.second.begin(), end}};
  }
  const Entry* find(const Prefix& key, size_t num_pages) const {
    if (num_pages * page_size_ > key.second.size()) return nullptr;
    const auto found = entries_.find(cut(key, num_pages));
    return found == entries_.end() ? nullptr : &found->second;
  }
  // Sorted keys: whatever extends a prefix follows it directly.
  bool is_extended(Map::const_iterator it) const {
    const auto next = std::next(it);
    if (next == entries_.end() || next->first.first != it->first.first) return false;
    const auto& [mine, other] = std::pair(it->first.second, next->first.second);
    return other.size() > mine.size() && std::equal(mine.begin(), mine.end(), other.begin());
  }

  size_t page_size_;
  Map entries_;
  uint64_t clock_ = 0;
};

class RadixTraffic {
 public:
  RadixTraffic(int32_t page_size, uint32_t seed)
      : random_(seed),
        page_size_(static_cast<size_t>(page_size)),
        pool_(40),
        tree_(pool_, page_size),
        naive_(page_size_) {}

  void step() {
    switch (below(5)) {
      case 0:
        hold();
        break;
      case 1:
        publish();
        break;
      case 2:
        finish();
        break;
      case 3:
        peek();
        break;
      default:
        evict(below(4));
    }
    tree_.check_invariants();
    ASSERT_EQ(tree_.num_cached_pages(), naive_.size());
    ASSERT_EQ(tree_.num_evictable_pages(), naive_.num_evictable());
    ASSERT_EQ(pool_.num_free() + static_cast<int32_t>(naive_.size()) + num_owned_,
              pool_.num_usable());
  }

 private:
  struct Holder {  // a running sequence: pages[: locked] are the tree's
    Prefix key;
    std::vector<PageId> pages;
    RadixLock lock;
  };

  size_t below(size_t n) { return random_() % n; }

  Prefix random_key() {
    Prefix key{below(4) == 0 ? "b" : "", {}};
    key.second.resize(below(8 * page_size_));
    for (TokenId& token : key.second) token = static_cast<TokenId>(below(2));
    return key;
  }

  void peek() {
    const Prefix key = random_key();
    ASSERT_EQ(tree_.peek(key.first, key.second).num_pages, naive_.match(key).size());
  }

  void hold() {
    if (holders_.size() >= 4) return;
    Holder holder{random_key(), {}, {}};
    const size_t max_pages = below(10);
    std::vector<PageId> expected = naive_.match(holder.key);
    expected.resize(std::min(expected.size(), max_pages));
    holder.lock = tree_.match(holder.key.first, holder.key.second, max_pages, holder.pages);
    ASSERT_EQ(holder.pages, expected);
    naive_.touch(holder.key, expected.size());
    naive_.lock(holder.key, expected.size(), 1);
    holders_.push_back(std::move(holder));
  }

  // Computes the pages up to some length, then offers them to the tree and keeps running.
  void publish() {
    if (holders_.empty()) return;
    Holder& holder = holders_[below(holders_.size())];
    grow(holder);
    const size_t locked = holder.lock.num_pages();
    const size_t known = naive_.match(holder.key).size();
    const bool expected = holder.pages.size() > locked && known <= locked;
    ASSERT_EQ(tree_.publish(holder.key.first, holder.lock, holder.key.second, holder.pages),
              expected);
    if (!expected) return;
    naive_.lock(holder.key, locked, -1);
    for (size_t n = locked; n < holder.pages.size(); ++n) {
      naive_.put(holder.key, n + 1, holder.pages[n]);
      --num_owned_;
    }
    naive_.touch(holder.key, holder.pages.size());
    naive_.lock(holder.key, holder.pages.size(), 1);
  }

  void finish() {
    if (holders_.empty()) return;
    std::swap(holders_[below(holders_.size())], holders_.back());
    Holder holder = std::move(holders_.back());
    holders_.pop_back();
    grow(holder);
    const size_t locked = holder.lock.num_pages();
    const size_t known = naive_.match(holder.key).size();
    tree_.insert(holder.key.first, holder.lock, holder.key.second, holder.pages);
    for (size_t n = locked; n < holder.pages.size(); ++n) {
      if (n >= known) naive_.put(holder.key, n + 1, holder.pages[n]);
      --num_owned_;
    }
    if (holder.pages.size() > locked) naive_.touch(holder.key, holder.pages.size());
    naive_.lock(holder.key, locked, -1);
  }

  void grow(Holder& holder) {
    const size_t whole = holder.key.second.size() / page_size_;
    const size_t wanted = holder.pages.size() + below(whole - holder.pages.size() + 1);
    const size_t missing = wanted - holder.pages.size();
    if (static_cast<size_t>(pool_.num_free()) < missing) evict(missing);
    while (holder.pages.size() < wanted && pool_.num_free() > 0) {
      holder.pages.push_back(pool_.take());
      ++num_owned_;
    }
  }

  void evict(size_t n) {
    std::vector<PageId> expected;
    for (PageId page = 0; expected.size() < n && (page = naive_.evict_one()) != 0;) {
      expected.push_back(page);
    }
    ASSERT_EQ(tree_.evict(n), expected.size());
    for (const PageId page : expected) ASSERT_EQ(pool_.use(page), PageUse::kFree);
  }

  std::mt19937 random_;
  size_t page_size_;
  PagePool pool_;
  RadixTree tree_;
  NaiveCache naive_;
  std::vector<Holder> holders_;
  int32_t num_owned_ = 0;
};

class RadixProperty : public testing::TestWithParam<int32_t> {};

TEST_P(RadixProperty, AgreesWithAMapOfPrefixes) {
  RadixTraffic traffic(GetParam(), 11);
  for (int i = 0; i < 40'000 && !HasFatalFailure(); ++i) {
    SCOPED_TRACE(i);
    traffic.step();
  }
}

INSTANTIATE_TEST_SUITE_P(PageSizes, RadixProperty, testing::Values(1, 2, 3));

}  // namespace
}  // namespace srt
