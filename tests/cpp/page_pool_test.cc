#include "cache/page_pool.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <utility>
#include <vector>

#include "core/error.h"

namespace srt {
namespace {

TEST(PagePool, HandsOutEveryPageButTheScratchPageOnce) {
  PagePool pool(5);
  std::set<PageId> pages;
  while (pool.num_free() > 0) pages.insert(pool.take());
  EXPECT_EQ(pages, (std::set<PageId>{1, 2, 3, 4}));
  EXPECT_EQ(pool.num_owned(), 4);
  EXPECT_THROW(pool.take(), InternalError);
}

TEST(PagePool, KnowsWhoHoldsAPage) {
  PagePool pool(3);
  const PageId page = pool.take();
  EXPECT_EQ(pool.use(page), PageUse::kOwned);
  pool.hand_to_cache(page);
  EXPECT_EQ(pool.use(page), PageUse::kCached);
  EXPECT_EQ(pool.num_cached(), 1);
  EXPECT_EQ(pool.num_owned(), 0);
  pool.give_back(page);
  EXPECT_EQ(pool.use(page), PageUse::kFree);
  EXPECT_EQ(pool.num_cached(), 0);
}

TEST(PagePool, RefusesToFreeTwiceOrOutsideThePool) {
  PagePool pool(3);
  const PageId page = pool.take();
  pool.give_back(page);
  EXPECT_THROW(pool.give_back(page), InternalError);
  EXPECT_THROW(pool.give_back(0), InternalError);
  EXPECT_THROW(pool.give_back(3), InternalError);
  EXPECT_THROW(pool.hand_to_cache(page), InternalError);
}

TEST(PagePool, HandsOutTheLeastFreePage) {
  constexpr int32_t kPages = 70'000;  // three levels of bits
  PagePool pool(kPages);
  std::set<PageId> free;
  for (PageId page = 1; page < kPages; ++page) free.insert(free.end(), page);
  std::vector<PageId> taken;
  std::mt19937 random(7);
  for (int i = 0; i < 200'000; ++i) {
    if (!free.empty() && (taken.empty() || random() % 100 < (i < 100'000 ? 80 : 30))) {
      const PageId page = pool.take();
      ASSERT_EQ(page, *free.begin());
      free.erase(free.begin());
      taken.push_back(page);
    } else {
      std::swap(taken[random() % taken.size()], taken.back());
      pool.give_back(taken.back());
      free.insert(taken.back());
      taken.pop_back();
    }
    ASSERT_EQ(pool.num_free(), static_cast<int32_t>(free.size()));
  }
}

TEST(PagePool, NeedsAPageBesideTheScratchPage) { EXPECT_THROW(PagePool(1), InvalidArgument); }

}  // namespace
}  // namespace srt
