// Token prefix -> KV pages: match, insert, lock, evict (oldest unlocked leaf first).
//
// A compressed trie over whole pages of tokens, one root per namespace. A node is an edge: its
// tokens and the pages that hold their KV. Children are found through one hash table over (parent,
// first page of tokens), so a step down costs the tokens it compares, whatever the fan-out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cache/leaf_heap.h"
#include "cache/page_pool.h"
#include "core/types.h"

namespace srt {

class RadixTree;

// A counted hold on a prefix: its pages stay until the lock goes. Empty for the empty prefix.
class RadixLock {
 public:
  RadixLock() = default;
  RadixLock(RadixLock&& other) noexcept { swap(other); }
  RadixLock& operator=(RadixLock&& other) noexcept {
    RadixLock moved(std::move(other));
    swap(moved);
    return *this;
  }
  RadixLock(const RadixLock&) = delete;
  RadixLock& operator=(const RadixLock&) = delete;
  ~RadixLock() { release(); }

  void release() noexcept;  // O(depth)
  size_t num_pages() const { return num_pages_; }
  int32_t node() const { return node_; }

 private:
  friend class RadixTree;
  RadixLock(RadixTree* tree, int32_t node, size_t num_pages)
      : tree_(tree), node_(node), num_pages_(num_pages) {}
  void swap(RadixLock& other) noexcept {
    std::swap(tree_, other.tree_);
    std::swap(node_, other.node_);
    std::swap(num_pages_, other.num_pages_);
  }

  RadixTree* tree_ = nullptr;
  int32_t node_ = -1;
  size_t num_pages_ = 0;
};

class RadixTree {
 public:
  using NodeId = LeafHeap::NodeId;
  static constexpr NodeId kNone = -1;
  using Tokens = std::span<const TokenId>;

  // What peek() found; `node` is the deepest node touched (kNone: nothing).
  struct Peek {
    size_t num_pages = 0;
    NodeId node = kNone;
  };

  // The pool must outlive the tree, the tree its locks.
  RadixTree(PagePool& pool, int32_t page_size);

  // Locks the longest cached prefix of `tokens`, at most `max_pages` of it, and appends its pages.
  // O(tokens matched + edge split + depth).
  RadixLock match(std::string_view ns, Tokens tokens, size_t max_pages, std::vector<PageId>& pages);

  // The same without locking, splitting or renewing the access time. O(tokens matched).
  Peek peek(std::string_view ns, Tokens tokens) const;

  // Makes tokens[: pages * page_size] findable and moves `lock` to its end, where `lock` holds a
  // prefix of it. The tree takes the pages behind the lock over. Does nothing and returns false
  // where the tree already knows a page behind the lock: then the caller keeps its copy.
  // O(tokens behind the lock).
  bool publish(std::string_view ns, RadixLock& lock, Tokens tokens, std::span<const PageId> pages);

  // The same for a caller that is done with its pages: the tree takes those that it does not know
  // and frees the copies of those that it does. O(tokens behind the lock).
  void insert(std::string_view ns, const RadixLock& lock, Tokens tokens,
              std::span<const PageId> pages);

  // Frees up to `num_pages` unlocked pages from the ends of the least recently used leaves;
  // returns how many. O(evicted + leaves touched * log leaves).
  size_t evict(size_t num_pages);

  size_t num_cached_pages() const { return num_cached_; }
  size_t num_evictable_pages() const { return num_cached_ - num_locked_; }
  size_t num_node_ids() const { return nodes_.size(); }  // ids are below it
  size_t num_nodes() const { return nodes_.size() - free_nodes_.size(); }
  uint64_t version() const { return version_; }  // moves whenever peek() could answer differently

  NodeId parent(NodeId node) const { return at(node).parent; }
  size_t end_page(NodeId node) const { return at(node).end_page; }

  void check_invariants() const;  // O(tree)

 private:
  friend class RadixLock;

  struct Node {
    std::vector<TokenId> tokens;  // num pages * page_size
    std::vector<PageId> pages;
    NodeId parent = kNone;
    NodeId first_child = kNone, next_sibling = kNone, prev_sibling = kNone;
    NodeId next_in_bucket = kNone;
    int32_t num_locks = 0;  // locks on this node or below
    uint64_t last_access = 0;
    size_t end_page = 0;              // pages from the root to this node's end
    const std::string* ns = nullptr;  // roots: the key in roots_
    bool is_alive = false;
  };
  struct Walk {
    NodeId node;           // deepest node matched to its end
    NodeId partial;        // child of `node` matched in part, or kNone
    size_t partial_pages;  // pages of `partial` that matched
    size_t num_pages;      // pages matched in all, from where the walk began
  };
  struct StringHash : std::hash<std::string_view> {
    using is_transparent = void;
  };

  Node& at(NodeId id) { return nodes_[static_cast<size_t>(id)]; }
  const Node& at(NodeId id) const { return nodes_[static_cast<size_t>(id)]; }
  bool is_root(NodeId id) const { return at(id).parent == kNone; }
  size_t page_tokens() const { return static_cast<size_t>(page_size_); }

  NodeId find_root(std::string_view ns) const;
  NodeId root_for(std::string_view ns);
  size_t bucket_of(NodeId parent, Tokens page) const;
  NodeId find_child(NodeId parent, Tokens tokens) const;
  size_t common_pages(NodeId node, Tokens tokens) const;
  Walk walk(NodeId start, Tokens tokens, std::vector<PageId>* pages) const;

  NodeId new_node();
  void link(NodeId node, NodeId parent);
  void unlink(NodeId node);
  void grow_table();
  void remove(NodeId node);
  NodeId split(NodeId node, size_t num_pages);
  NodeId attach(NodeId parent, Tokens tokens, std::span<const PageId> pages);

  RadixLock lock(NodeId node);
  void unlock(NodeId node);
  void touch(NodeId node);
  void offer(NodeId node);  // puts a leaf that may be evicted into the heap
  void check_node(NodeId node) const;

  PagePool& pool_;
  int32_t page_size_;
  std::vector<Node> nodes_;
  std::vector<NodeId> free_nodes_;
  std::vector<NodeId> buckets_;  // heads of the chains through next_in_bucket; a power of two
  std::unordered_map<std::string, NodeId, StringHash, std::equal_to<>> roots_;
  LeafHeap leaves_;
  size_t num_cached_ = 0;
  size_t num_locked_ = 0;
  uint64_t clock_ = 0;  // counts calls that touch, not time
  uint64_t version_ = 0;
};

}  // namespace srt
