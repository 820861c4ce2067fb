#include "cache/page_pool.h"

#include <bit>
#include <string>

#include "core/error.h"

namespace srt {

namespace {

constexpr size_t kWordBits = 64;

size_t checked_size(int32_t num_pages) {
  expect(num_pages >= 2, "num_pages must be at least 2: page 0 is scratch");
  return static_cast<size_t>(num_pages);
}

}  // namespace

PageSet::PageSet(size_t num_pages) {
  size_t num_words = num_pages;
  do {
    num_words = (num_words + kWordBits - 1) / kWordBits;
    levels_.emplace_back(num_words, 0);
  } while (num_words > 1);
}

void PageSet::insert(size_t page) {
  size_t at = page;
  for (std::vector<uint64_t>& level : levels_) {
    uint64_t& word = level[at / kWordBits];
    const bool was_empty = word == 0;
    word |= uint64_t{1} << at % kWordBits;
    if (!was_empty) break;
    at /= kWordBits;
  }
  ++size_;
}

size_t PageSet::take_least() {
  size_t page = 0;
  for (size_t i = levels_.size(); i-- > 0;) {
    page = page * kWordBits + static_cast<size_t>(std::countr_zero(levels_[i][page]));
  }
  size_t at = page;
  for (std::vector<uint64_t>& level : levels_) {
    uint64_t& word = level[at / kWordBits];
    word &= word - 1;  // the least bit is the one that was found
    if (word != 0) break;
    at /= kWordBits;
  }
  --size_;
  return page;
}

PagePool::PagePool(int32_t num_pages)
    : use_(checked_size(num_pages), PageUse::kFree), free_(use_.size()) {
  use_[0] = PageUse::kScratch;
  for (size_t page = 1; page < use_.size(); ++page) free_.insert(page);
}

size_t PagePool::index(PageId page) const {
  const auto i = static_cast<size_t>(page);
  SRT_CHECK(page > 0 && i < use_.size(), "page " + std::to_string(page) + " is not in the pool");
  return i;
}

PageId PagePool::take() {
  SRT_CHECK(free_.size() > 0, "a page was taken without making room first");
  const size_t page = free_.take_least();
  use_[page] = PageUse::kOwned;
  return static_cast<PageId>(page);
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
  free_.insert(index(page));
}

}  // namespace srt
