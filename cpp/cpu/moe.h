// A mixture of experts: the choice of each token's experts, and their gated MLPs.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"
#include "cpu/activation.h"

namespace srt::cpu {

struct RouteParams {
  DType dtype;         // of logits: f32, bf16 or f16
  const void* logits;  // [tokens, experts], row stride logits_stride
  int64_t tokens, experts, top_k, logits_stride;
  float softcap;       // > 0: cap * tanh(x / cap) before the softmax
  float norm_order;    // p > 0: the chosen weights are divided by their L-p norm
  float scale;         // multiplies them in the end
  int64_t groups;      // neighbouring experts form so many groups; those of the top_groups groups
  int64_t top_groups;  // whose best expert is best can be chosen
  float* weights;      // [tokens, top_k], the likeliest first
  int32_t* chosen;     // [tokens, top_k]
};

// Softmax over all experts, then the top_k likeliest; of equals the first.
void route(const RouteParams& p);

struct ExpertsParams {
  DType dtype;            // f32, bf16 or f16: of all but weights
  const void* x;          // [tokens, hidden], row stride x_stride
  const void* gate_up;    // [experts, 2 * size, hidden]
  const void* down;       // [experts, hidden, size]
  const float* weights;   // [tokens, top_k]
  const int32_t* chosen;  // [tokens, top_k], in [0, experts)
  int64_t tokens, top_k, experts, hidden, size, x_stride;
  Gate gate;
  const void* shared;       // [tokens, hidden]: added; or nullptr
  const void* shared_gate;  // [tokens]: the sigmoid of it scales `shared`; or nullptr
  // Work space; A = tokens * top_k rows, sorted by expert.
  int32_t* indptr;  // [experts + 1]
  int32_t* place;   // [2, A]: the sorted row of each choice, and the token of each sorted row
  void* wide;       // [A, 2 * size]
  void* narrow;     // [A, size]
  void* rows;       // [A, hidden]
  void* out;        // [tokens, hidden]: sums in float32 over a token's choices, in their order
};

void experts_mlp(const ExpertsParams& p);

}  // namespace srt::cpu
