#include "cpu/moe.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/grouped.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace srt::cpu {
namespace {

// The `count` largest of x, by falling value, of equals the first. Chosen entries become -1.
template <typename F>
void take_largest(std::vector<float>& x, int64_t count, const F& take) {
  for (int64_t k = 0; k < count; ++k) {
    const auto best = std::max_element(x.begin(), x.end());
    take(k, best - x.begin(), *best);
    *best = -1.0F;
  }
}

void softmax(std::vector<float>& x, float softcap) {
  if (softcap > 0.0F) {
    for (float& v : x) v = softcap * std::tanh(v / softcap);
  }
  const float top = *std::max_element(x.begin(), x.end());
  float total = 0.0F;
  for (float& v : x) {
    v = std::exp(v - top);
    total += v;
  }
  for (float& v : x) v /= total;
}

// Experts outside the best groups get the probability 0.
void keep_best_groups(std::vector<float>& probs, int64_t groups, int64_t top_groups) {
  const auto size = static_cast<int64_t>(probs.size()) / groups;
  std::vector<float> best(static_cast<size_t>(groups));
  for (int64_t g = 0; g < groups; ++g) {
    const auto first = probs.begin() + g * size;
    best[static_cast<size_t>(g)] = *std::max_element(first, first + size);
  }
  std::vector<bool> kept(static_cast<size_t>(groups), false);
  take_largest(best, top_groups,
               [&](int64_t, int64_t g, float) { kept[static_cast<size_t>(g)] = true; });
  for (size_t e = 0; e < probs.size(); ++e) {
    if (!kept[e / static_cast<size_t>(size)]) probs[e] = 0.0F;
  }
}

void route_token(const RouteParams& p, int64_t token, std::vector<float>& probs) {
  softmax(probs, p.softcap);
  if (p.top_groups < p.groups) keep_best_groups(probs, p.groups, p.top_groups);
  float* weights = p.weights + token * p.top_k;
  int32_t* chosen = p.chosen + token * p.top_k;
  take_largest(probs, p.top_k, [&](int64_t k, int64_t e, float prob) {
    chosen[k] = static_cast<int32_t>(e);
    weights[k] = prob;
  });
  float scale = p.scale;
  if (p.norm_order > 0.0F) {
    float sum = 0.0F;
    for (int64_t k = 0; k < p.top_k; ++k) sum += std::pow(weights[k], p.norm_order);
    scale /= std::pow(sum, 1.0F / p.norm_order);
  }
  for (int64_t k = 0; k < p.top_k; ++k) weights[k] *= scale;
}

// Counting sort of the choices by expert; stable.
void sort_choices(const ExpertsParams& p) {
  const int64_t count = p.tokens * p.top_k;
  std::fill_n(p.indptr, p.experts + 1, 0);
  for (int64_t i = 0; i < count; ++i) ++p.indptr[p.chosen[i] + 1];
  for (int64_t e = 0; e < p.experts; ++e) p.indptr[e + 1] += p.indptr[e];
  thread_local std::vector<int32_t> next;
  next.assign(p.indptr, p.indptr + p.experts);
  int32_t* token_of = p.place + count;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t row = next[static_cast<size_t>(p.chosen[i])]++;
    p.place[i] = row;
    token_of[row] = static_cast<int32_t>(i / p.top_k);
  }
}

GroupedLinearParams product(const ExpertsParams& p, const void* x, int64_t x_stride, const void* w,
                            void* y, int64_t in, int64_t out) {
  return {.dtype = p.dtype,
          .x = x,
          .w = w,
          .y = y,
          .indptr = p.indptr,
          .source = nullptr,
          .groups = p.experts,
          .rows = p.tokens * p.top_k,
          .in = in,
          .out = out,
          .x_stride = x_stride,
          .x_group_stride = 0,
          .y_stride = out,
          .y_group_stride = 0,
          .w_stride = in,
          .w_group_stride = in * out,
          .w_transposed = false};
}

}  // namespace

void route(const RouteParams& p) {
  const Kernels& k = kernels();
  parallel_ranges(p.tokens, p.tokens * p.experts * 8, [&](int64_t begin, int64_t end) {
    const auto row_bytes = p.logits_stride * static_cast<int64_t>(dtype_bytes(p.dtype));
    std::vector<float> probs(static_cast<size_t>(p.experts));
    for (int64_t t = begin; t < end; ++t) {
      const char* row = static_cast<const char*>(p.logits) + t * row_bytes;
      k.to_float(p.dtype, row, 1, p.experts, p.experts, probs.data());
      route_token(p, t, probs);
    }
  });
}

void experts_mlp(const ExpertsParams& p) {
  if (p.tokens == 0) return;
  const int64_t count = p.tokens * p.top_k;
  sort_choices(p);
  GroupedLinearParams up = product(p, p.x, p.x_stride, p.gate_up, p.wide, p.hidden, 2 * p.size);
  up.source = p.place + count;
  grouped_linear(up);
  gated({.dtype = p.dtype,
         .x = p.wide,
         .out = p.narrow,
         .rows = count,
         .size = p.size,
         .x_stride = 2 * p.size,
         .gate = p.gate});
  grouped_linear(product(p, p.narrow, p.size, p.down, p.rows, p.size, p.hidden));
  const auto combine = kernels().combine;
  parallel_ranges(p.tokens, count * p.hidden,
                  [&](int64_t begin, int64_t end) { combine(p, begin, end); });
}

}  // namespace srt::cpu
