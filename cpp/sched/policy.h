// The order of the waiting queue, and whom to retract.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "cache/radix_tree.h"
#include "sched/config.h"
#include "sched/sequence.h"

namespace srt {

// Sequences that wait for pages and a row. Larger priority first, then retracted ones (their
// clients already read), then the policy's order. Policies that look at the tree do so only while
// at most kMaxSorted wait; beyond that they are first come, first served, so that a round costs
// what it admits and not what waits.
class WaitingQueue {
 public:
  static constexpr size_t kMaxSorted = 128;

  WaitingQueue(Policy policy, uint64_t seed)
      : policy_(policy), random_(seed), cursor_(by_arrival_.end()) {}

  size_t size() const { return by_arrival_.size(); }
  bool empty() const { return by_arrival_.empty(); }
  void push(Sequence& seq);    // O(log n)
  void remove(Sequence& seq);  // O(log n); also between begin_round() and the last next()

  // Starts a walk in policy order. fcfs, random: O(1). lpm, dfs-weight: O(n log n + tokens
  // matched since the tree last changed) for n <= kMaxSorted.
  void begin_round(const RadixTree* tree);  // nullptr: no cache, the policy is fcfs
  Sequence* next();                         // nullptr at the end

  template <typename Visit>
  void for_each(Visit visit) const {
    for (const Key& key : by_arrival_) visit(*key.seq);
  }
  template <typename Visit>
  void for_each_until(Visit is_enough) const {
    for (const Key& key : by_arrival_)
      if (is_enough(*key.seq)) return;
  }

 private:
  struct Key {
    int64_t minus_priority;
    bool is_fresh;
    uint64_t order;
    uint64_t serial;
    Sequence* seq;
    bool operator<(const Key& other) const;
  };
  static Key key_of(Sequence& seq);
  void sort_by_prefix();
  void sort_by_weight(const RadixTree& tree);

  Policy policy_;
  std::mt19937_64 random_;
  std::set<Key> by_arrival_;
  std::set<Key>::iterator cursor_;
  std::vector<Sequence*> sorted_;  // used when the policy looks at the tree
  size_t next_sorted_ = 0;
  bool is_sorted_ = false;
};

// Running sequences in the order in which they give their pages back: lower priority, fewer output
// tokens, longer prompt, later arrival. O(n log n).
void sort_victims(std::vector<Sequence*>& candidates);

}  // namespace srt
