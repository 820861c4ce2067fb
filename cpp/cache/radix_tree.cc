#include "cache/radix_tree.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace srt {
namespace {

// Equal leading tokens of two runs of length n. Compares 32 at a time while nothing differs.
size_t common_prefix(const TokenId* a, const TokenId* b, size_t n) {
  constexpr size_t kBlock = 32;
  size_t i = 0;
  while (i + kBlock <= n && std::memcmp(a + i, b + i, kBlock * sizeof(TokenId)) == 0) i += kBlock;
  while (i < n && a[i] == b[i]) ++i;
  return i;
}

}  // namespace

void RadixLock::release() noexcept {
  if (tree_ != nullptr) tree_->unlock(node_);
  tree_ = nullptr;
  node_ = -1;
  num_pages_ = 0;
}

RadixTree::RadixTree(PagePool& pool, int32_t page_size)
    : pool_(pool), page_size_(page_size), buckets_(1024, kNone) {}

// ---- finding ----

RadixTree::NodeId RadixTree::find_root(std::string_view ns) const {
  const auto found = roots_.find(ns);
  return found == roots_.end() ? kNone : found->second;
}

size_t RadixTree::bucket_of(NodeId parent, Tokens page) const {
  uint64_t h = static_cast<uint64_t>(parent) * 0x9E3779B97F4A7C15ULL;
  for (const TokenId token : page) {
    h = (h ^ static_cast<uint32_t>(token)) * 0xBF58476D1CE4E5B9ULL;
    h ^= h >> 29;
  }
  return static_cast<size_t>(h ^ (h >> 32)) & (buckets_.size() - 1);
}

RadixTree::NodeId RadixTree::find_child(NodeId parent, Tokens tokens) const {
  const Tokens page = tokens.first(page_tokens());
  for (NodeId id = buckets_[bucket_of(parent, page)]; id != kNone; id = at(id).next_in_bucket) {
    const Node& node = at(id);
    if (node.parent == parent && std::equal(page.begin(), page.end(), node.tokens.begin())) {
      return id;
    }
  }
  return kNone;
}

size_t RadixTree::common_pages(NodeId node, Tokens tokens) const {
  const std::vector<TokenId>& edge = at(node).tokens;
  const size_t n = std::min(edge.size(), tokens.size());
  return common_prefix(edge.data(), tokens.data(), n) / page_tokens();
}

RadixTree::Walk RadixTree::walk(NodeId start, Tokens tokens, std::vector<PageId>* pages) const {
  Walk end{start, kNone, 0, 0};
  while (tokens.size() >= page_tokens()) {
    const NodeId child = find_child(end.node, tokens);
    if (child == kNone) break;
    const size_t k = common_pages(child, tokens);
    const std::vector<PageId>& edge = at(child).pages;
    if (pages != nullptr) {
      pages->insert(pages->end(), edge.begin(), edge.begin() + static_cast<ptrdiff_t>(k));
    }
    end.num_pages += k;
    if (k < edge.size()) {
      end.partial = child;
      end.partial_pages = k;
      break;
    }
    end.node = child;
    tokens = tokens.subspan(k * page_tokens());
  }
  return end;
}

RadixLock RadixTree::match(std::string_view ns, Tokens tokens, size_t max_pages,
                           std::vector<PageId>& pages) {
  const NodeId root = find_root(ns);
  if (root == kNone) return {};
  const Tokens wanted = tokens.first(std::min(tokens.size(), max_pages * page_tokens()));
  const Walk end = walk(root, wanted, &pages);
  const NodeId node = end.partial == kNone ? end.node : split(end.partial, end.partial_pages);
  if (node == root) return {};
  touch(node);
  return lock(node);
}

RadixTree::Peek RadixTree::peek(std::string_view ns, Tokens tokens) const {
  const NodeId root = find_root(ns);
  if (root == kNone) return {};
  const Walk end = walk(root, tokens, nullptr);
  return {end.num_pages, end.partial == kNone ? end.node : end.partial};
}

// ---- growing ----

RadixTree::NodeId RadixTree::root_for(std::string_view ns) {
  const NodeId found = find_root(ns);
  if (found != kNone) return found;
  const NodeId root = new_node();
  const auto entry = roots_.emplace(std::string(ns), root).first;
  at(root).ns = &entry->first;
  return root;
}

RadixTree::NodeId RadixTree::new_node() {
  NodeId id = static_cast<NodeId>(nodes_.size());
  if (free_nodes_.empty()) {
    nodes_.emplace_back();
  } else {
    id = free_nodes_.back();
    free_nodes_.pop_back();
  }
  at(id).is_alive = true;
  if (num_nodes() > buckets_.size()) grow_table();
  return id;
}

void RadixTree::grow_table() {
  buckets_.assign(buckets_.size() * 2, kNone);
  for (size_t i = 0; i < nodes_.size(); ++i) {
    Node& node = nodes_[i];
    if (!node.is_alive || node.parent == kNone) continue;
    NodeId& head = buckets_[bucket_of(node.parent, Tokens(node.tokens).first(page_tokens()))];
    node.next_in_bucket = head;
    head = static_cast<NodeId>(i);
  }
}

// Makes `id`, whose tokens are set, a child of `parent`.
void RadixTree::link(NodeId id, NodeId parent) {
  Node& node = at(id);
  Node& above = at(parent);
  if (leaves_.contains(parent)) leaves_.erase(parent);
  node.parent = parent;
  node.prev_sibling = kNone;
  node.next_sibling = above.first_child;
  if (above.first_child != kNone) at(above.first_child).prev_sibling = id;
  above.first_child = id;
  NodeId& head = buckets_[bucket_of(parent, Tokens(node.tokens).first(page_tokens()))];
  node.next_in_bucket = head;
  head = id;
}

// Undoes link(); must run while the node still has its first page of tokens.
void RadixTree::unlink(NodeId id) {
  Node& node = at(id);
  NodeId* cursor = &buckets_[bucket_of(node.parent, Tokens(node.tokens).first(page_tokens()))];
  while (*cursor != id) cursor = &at(*cursor).next_in_bucket;
  *cursor = node.next_in_bucket;
  if (node.prev_sibling != kNone) {
    at(node.prev_sibling).next_sibling = node.next_sibling;
  } else {
    at(node.parent).first_child = node.next_sibling;
  }
  if (node.next_sibling != kNone) at(node.next_sibling).prev_sibling = node.prev_sibling;
  node.parent = kNone;
}

// Cuts `id` after `num_pages`; returns the new upper part. `id` stays the lower part, so locks
// that end at `id` keep holding the whole prefix.
RadixTree::NodeId RadixTree::split(NodeId id, size_t num_pages) {
  const NodeId upper = new_node();
  const NodeId parent = at(id).parent;
  unlink(id);
  Node& low = at(id);
  Node& up = at(upper);
  const auto cut_tokens = static_cast<ptrdiff_t>(num_pages * page_tokens());
  const auto cut_pages = static_cast<ptrdiff_t>(num_pages);
  up.tokens.assign(low.tokens.begin(), low.tokens.begin() + cut_tokens);
  up.pages.assign(low.pages.begin(), low.pages.begin() + cut_pages);
  low.tokens.erase(low.tokens.begin(), low.tokens.begin() + cut_tokens);
  low.pages.erase(low.pages.begin(), low.pages.begin() + cut_pages);
  up.num_locks = low.num_locks;
  up.last_access = low.last_access;
  up.end_page = low.end_page - low.pages.size();
  link(upper, parent);
  link(id, upper);
  ++version_;
  return upper;
}

RadixTree::NodeId RadixTree::attach(NodeId parent, Tokens tokens, std::span<const PageId> pages) {
  const NodeId id = new_node();
  Node& node = at(id);
  node.tokens.assign(tokens.begin(), tokens.end());
  node.pages.assign(pages.begin(), pages.end());
  node.end_page = at(parent).end_page + pages.size();
  for (const PageId page : pages) pool_.hand_to_cache(page);
  num_cached_ += pages.size();
  link(id, parent);
  ++version_;
  return id;
}

bool RadixTree::publish(std::string_view ns, RadixLock& lock_held, Tokens tokens,
                        std::span<const PageId> pages) {
  const size_t skip = lock_held.num_pages();
  if (pages.size() <= skip) return false;
  const NodeId start = lock_held.node() == kNone ? root_for(ns) : lock_held.node();
  const Tokens rest = tokens.subspan(skip * page_tokens(), (pages.size() - skip) * page_tokens());
  if (find_child(start, rest) != kNone) return false;
  const NodeId leaf = attach(start, rest, pages.subspan(skip));
  touch(leaf);
  lock_held = lock(leaf);
  return true;
}

void RadixTree::insert(std::string_view ns, const RadixLock& lock_held, Tokens tokens,
                       std::span<const PageId> pages) {
  const size_t skip = lock_held.num_pages();
  if (pages.size() <= skip) return;
  const NodeId start = lock_held.node() == kNone ? root_for(ns) : lock_held.node();
  Tokens rest = tokens.subspan(skip * page_tokens(), (pages.size() - skip) * page_tokens());
  pages = pages.subspan(skip);
  const Walk end = walk(start, rest, nullptr);
  for (const PageId copy : pages.first(end.num_pages)) pool_.give_back(copy);
  NodeId node = end.partial == kNone ? end.node : split(end.partial, end.partial_pages);
  if (end.num_pages < pages.size()) {
    rest = rest.subspan(end.num_pages * page_tokens());
    node = attach(node, rest, pages.subspan(end.num_pages));
  }
  touch(node);
}

// ---- holding ----

RadixLock RadixTree::lock(NodeId id) {
  for (NodeId n = id; !is_root(n); n = at(n).parent) {
    if (at(n).num_locks++ > 0) continue;
    num_locked_ += at(n).pages.size();
    if (leaves_.contains(n)) leaves_.erase(n);
  }
  return {this, id, at(id).end_page};
}

void RadixTree::unlock(NodeId id) {
  for (NodeId n = id; !is_root(n); n = at(n).parent) {
    if (--at(n).num_locks > 0) continue;
    num_locked_ -= at(n).pages.size();
    offer(n);
  }
}

void RadixTree::offer(NodeId id) {
  const Node& node = at(id);
  const bool is_evictable = node.first_child == kNone && node.num_locks == 0 && !is_root(id);
  if (is_evictable && !leaves_.contains(id)) leaves_.push(id, node.last_access);
}

void RadixTree::touch(NodeId id) {
  ++clock_;
  for (NodeId n = id; !is_root(n); n = at(n).parent) {
    at(n).last_access = clock_;
    if (leaves_.contains(n)) leaves_.update(n, clock_);
  }
  offer(id);
}

// ---- shrinking ----

size_t RadixTree::evict(size_t num_pages) {
  size_t num_freed = 0;
  while (num_freed < num_pages && !leaves_.empty()) {
    const NodeId id = leaves_.top();
    Node& leaf = at(id);
    const size_t n = std::min(num_pages - num_freed, leaf.pages.size());
    const size_t keep = leaf.pages.size() - n;
    for (size_t i = keep; i < leaf.pages.size(); ++i) pool_.give_back(leaf.pages[i]);
    num_freed += n;
    num_cached_ -= n;
    ++version_;
    if (keep == 0) {
      remove(id);
      continue;
    }
    leaf.pages.resize(keep);
    leaf.tokens.resize(keep * page_tokens());
    leaf.end_page -= n;
  }
  return num_freed;
}

// Takes an empty-handed leaf out of the tree; its parent may become a leaf, its root may go.
void RadixTree::remove(NodeId id) {
  const NodeId parent = at(id).parent;
  leaves_.erase(id);
  unlink(id);
  at(id) = Node{};
  free_nodes_.push_back(id);
  if (!is_root(parent)) {
    offer(parent);
  } else if (at(parent).first_child == kNone) {
    roots_.erase(roots_.find(*at(parent).ns));
    at(parent) = Node{};
    free_nodes_.push_back(parent);
  }
}

// ---- checking ----

void RadixTree::check_node(NodeId id) const {
  const Node& node = at(id);
  SRT_CHECK(!node.pages.empty(), "a node holds at least one page");
  SRT_CHECK(node.tokens.size() == node.pages.size() * page_tokens(), "tokens fill whole pages");
  SRT_CHECK(node.end_page == at(node.parent).end_page + node.pages.size(), "depths add up");
  SRT_CHECK(find_child(node.parent, node.tokens) == id, "a node is found by its first page");
  for (const PageId page : node.pages) {
    SRT_CHECK(pool_.use(page) == PageUse::kCached, "the pool knows the tree's pages as cached");
  }
  int32_t locks_below = 0;
  for (NodeId c = node.first_child; c != kNone; c = at(c).next_sibling) {
    SRT_CHECK(at(c).parent == id, "children know their parent");
    SRT_CHECK(at(c).last_access <= node.last_access, "a parent is as fresh as its children");
    locks_below += at(c).num_locks;
  }
  SRT_CHECK(node.num_locks >= locks_below, "a lock counts on its whole path");
  const bool is_evictable = node.first_child == kNone && node.num_locks == 0;
  SRT_CHECK(leaves_.contains(id) == is_evictable, "the heap holds the unlocked leaves");
}

void RadixTree::check_invariants() const {
  size_t num_pages = 0;
  size_t num_locked = 0;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (!node.is_alive) continue;
    if (node.parent == kNone) {
      SRT_CHECK(node.ns != nullptr && node.first_child != kNone, "a root has a name and children");
      continue;
    }
    check_node(static_cast<NodeId>(i));
    num_pages += node.pages.size();
    if (node.num_locks > 0) num_locked += node.pages.size();
  }
  SRT_CHECK(num_pages == num_cached_, "the count of cached pages is right");
  SRT_CHECK(num_locked == num_locked_, "the count of locked pages is right");
  SRT_CHECK(num_cached_ == static_cast<size_t>(pool_.num_cached()), "pool and tree agree");
}

}  // namespace srt
