#include "cpu/grouped.h"

#include <algorithm>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace srt::cpu {
namespace {

constexpr int64_t kGrainRows = 24;  // of the weight: a panel of linear_kernel.h
constexpr int64_t kGrainBytes = 1 << 17;

}  // namespace

void grouped_linear(const GroupedLinearParams& p) {
  const auto row_bytes = p.in * static_cast<int64_t>(dtype_bytes(p.dtype));
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (row_bytes * kGrainRows)) * kGrainRows;
  thread_local std::vector<GroupedItem> items;
  items.clear();
  int64_t elements = 0;
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t first = p.indptr == nullptr ? 0 : p.indptr[g];
    const int64_t last = p.indptr == nullptr ? p.rows : p.indptr[g + 1];
    if (first == last) continue;
    elements += (last - first) * p.in * p.out;
    for (int64_t n = 0; n < p.out; n += grain) {
      items.push_back({g, first, last, n, std::min(n + grain, p.out)});
    }
  }
  const auto kernel = kernels().grouped;
  const GroupedItem* list = items.data();
  parallel_items(static_cast<int64_t>(items.size()), elements,
                 [&](int64_t i) { kernel(p, list[i]); });
}

}  // namespace srt::cpu
