#include "sched/policy.h"

#include <algorithm>
#include <tuple>
#include <unordered_map>

namespace srt {

bool WaitingQueue::Key::operator<(const Key& other) const {
  return std::tie(minus_priority, is_fresh, order, serial) <
         std::tie(other.minus_priority, other.is_fresh, other.order, other.serial);
}

WaitingQueue::Key WaitingQueue::key_of(Sequence& seq) {
  return {-int64_t{seq.request.priority}, !seq.was_retracted, seq.order, seq.serial, &seq};
}

void WaitingQueue::push(Sequence& seq) {
  if (policy_ == Policy::kRandom && !seq.was_retracted) seq.order = random_();
  by_arrival_.insert(key_of(seq));
}

void WaitingQueue::remove(Sequence& seq) {
  const auto found = by_arrival_.find(key_of(seq));
  if (found == by_arrival_.end()) return;
  if (!is_sorted_ && cursor_ == found) ++cursor_;
  by_arrival_.erase(found);
}

void WaitingQueue::begin_round(const RadixTree* tree) {
  cursor_ = by_arrival_.begin();
  const bool looks = policy_ == Policy::kLpm || policy_ == Policy::kDfsWeight;
  is_sorted_ = looks && tree != nullptr && size() > 1 && size() <= kMaxSorted;
  if (!is_sorted_) return;
  sorted_.clear();
  next_sorted_ = 0;
  for (const Key& key : by_arrival_) {
    Sequence& seq = *key.seq;
    sorted_.push_back(&seq);
    if (seq.match_version == tree->version()) continue;
    seq.match = tree->peek(seq.request.ns, seq.tokens);
    seq.match_version = tree->version();
  }
  if (policy_ == Policy::kLpm) {
    sort_by_prefix();
  } else {
    sort_by_weight(*tree);
  }
}

Sequence* WaitingQueue::next() {
  if (is_sorted_) return next_sorted_ < sorted_.size() ? sorted_[next_sorted_++] : nullptr;
  return cursor_ == by_arrival_.end() ? nullptr : (cursor_++)->seq;
}

// `sorted_` arrives in queue order, so a stable sort keeps arrival among equals.
void WaitingQueue::sort_by_prefix() {
  std::stable_sort(sorted_.begin(), sorted_.end(), [](const Sequence* a, const Sequence* b) {
    return std::tuple(a->request.priority, a->was_retracted, a->match.num_pages) >
           std::tuple(b->request.priority, b->was_retracted, b->match.num_pages);
  });
}

// A depth-first walk of the tree that visits heavier children first and a node's own requests
// after its children's; only the paths of waiting requests are looked at.
void WaitingQueue::sort_by_weight(const RadixTree& tree) {
  std::unordered_map<RadixTree::NodeId, int64_t> weights;
  for (const Sequence* seq : sorted_) {
    for (auto n = seq->match.node; n != RadixTree::kNone; n = tree.parent(n)) ++weights[n];
  }
  // Rank, then root first (-weight, node) a step; the end mark sorts behind every child.
  using Path = std::vector<std::pair<int64_t, RadixTree::NodeId>>;
  std::vector<std::pair<Path, Sequence*>> paths;
  paths.reserve(sorted_.size());
  for (Sequence* seq : sorted_) {
    Path path{{1, 0}};
    for (auto n = seq->match.node; n != RadixTree::kNone; n = tree.parent(n)) {
      path.emplace_back(-weights[n], n);
    }
    path.emplace_back(-int64_t{seq->request.priority}, seq->was_retracted ? 0 : 1);
    std::reverse(path.begin(), path.end());
    paths.emplace_back(std::move(path), seq);
  }
  std::stable_sort(paths.begin(), paths.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (size_t i = 0; i < paths.size(); ++i) sorted_[i] = paths[i].second;
}

void sort_victims(std::vector<Sequence*>& candidates) {
  std::sort(candidates.begin(), candidates.end(), [](const Sequence* a, const Sequence* b) {
    const auto key = [](const Sequence& seq) {
      return std::tuple(int64_t{seq.request.priority}, seq.num_planned_output(), -seq.prompt_len,
                        -static_cast<int64_t>(seq.serial));
    };
    return key(*a) < key(*b);
  });
}

}  // namespace srt
