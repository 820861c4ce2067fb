// Which KV pages are free, and who holds the others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/types.h"

namespace srt {

// Page 0 is scratch: padding reads and writes it, nobody owns it.
enum class PageUse : uint8_t { kScratch, kFree, kOwned, kCached };

// Hands out page numbers; owns no memory of the pool itself. Every call is O(1).
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
  std::vector<PageId> free_;  // a stack: the page freed last is warm in the device's caches
  int32_t num_cached_ = 0;
};

}  // namespace srt
