#include "cache/page_pool.h"

#include <string>

#include "core/error.h"

namespace srt {

PagePool::PagePool(int32_t num_pages) {
  expect(num_pages >= 2, "num_pages must be at least 2: page 0 is scratch");
  use_.assign(static_cast<size_t>(num_pages), PageUse::kFree);
  use_[0] = PageUse::kScratch;
  free_.reserve(use_.size());
  for (PageId page = num_pages - 1; page > 0; --page) free_.push_back(page);
}

size_t PagePool::index(PageId page) const {
  const auto i = static_cast<size_t>(page);
  SRT_CHECK(page > 0 && i < use_.size(), "page " + std::to_string(page) + " is not in the pool");
  return i;
}

PageId PagePool::take() {
  SRT_CHECK(!free_.empty(), "a page was taken without making room first");
  const PageId page = free_.back();
  free_.pop_back();
  use_[index(page)] = PageUse::kOwned;
  return page;
}

void PagePool::hand_to_cache(PageId page) {
  PageUse& use = use_[index(page)];
  SRT_CHECK(use == PageUse::kOwned, "page " + std::to_string(page) + " has no owner to hand it on");
  use = PageUse::kCached;
  ++num_cached_;
}

void PagePool::give_back(PageId page) {
  PageUse& use = use_[index(page)];
  SRT_CHECK(use != PageUse::kFree, "page " + std::to_string(page) + " is freed twice");
  if (use == PageUse::kCached) --num_cached_;
  use = PageUse::kFree;
  free_.push_back(page);
}

}  // namespace srt
