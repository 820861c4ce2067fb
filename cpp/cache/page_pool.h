// Which KV pages are free, and who holds the others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/types.h"

namespace srt {

// Page 0 is scratch: padding reads and writes it, nobody owns it.
enum class PageUse : uint8_t { kScratch, kFree, kOwned, kCached };

// A set of page numbers that gives its least one: a bit a page, and above that a bit for each word
// that holds any. Every call costs a word or two a level; four levels hold 16 million pages.
class PageSet {
 public:
  explicit PageSet(size_t num_pages);  // empty

  size_t size() const { return size_; }
  void insert(size_t page);  // one that it does not hold
  size_t take_least();       // of a set that is not empty

 private:
  std::vector<std::vector<uint64_t>> levels_;  // the pages' own bits first
  size_t size_ = 0;
};

// Hands out page numbers, the least first, so that what is taken at once mostly lies side by side
// however the pool was used before: kernels read runs of pages faster. Owns no memory of the pool
// itself.
class PagePool {
 public:
  // num_pages counts the scratch page, so num_pages - 1 can be handed out.
  explicit PagePool(int32_t num_pages);

  int32_t num_usable() const { return static_cast<int32_t>(use_.size()) - 1; }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_cached() const { return num_cached_; }
  int32_t num_owned() const { return num_usable() - num_free() - num_cached_; }
  PageUse use(PageId page) const { return use_[index(page)]; }

  PageId take();                    // free -> owned by the sequence that asked
  void hand_to_cache(PageId page);  // owned -> held by the prefix tree
  void give_back(PageId page);      // owned or cached -> free

 private:
  size_t index(PageId page) const;

  std::vector<PageUse> use_;
  PageSet free_;
  int32_t num_cached_ = 0;
};

}  // namespace srt
