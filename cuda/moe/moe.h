// A mixture of experts: the choice of each token's experts, and their gated MLPs as grouped GEMMs.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/launch.h"

namespace srt::cuda {

constexpr int kMaxExperts = 512;
constexpr int kMaxTopK = 32;
constexpr int kMaxGroups = 32;

struct RouteParams {
  const void* logits;  // [num_tokens, num_experts], rows logits_stride elements apart
  float* weights;      // [num_tokens, top_k], the likeliest first
  int32_t* experts;    // [num_tokens, top_k]
  int64_t logits_stride;
  int num_tokens;
  int num_experts;   // at most kMaxExperts
  int top_k;         // at most kMaxTopK
  int num_groups;    // neighbouring experts, at most kMaxGroups; experts come from the top_groups
  int top_groups;    // groups whose best expert is best
  float softcap;     // > 0: cap * tanh(x / cap) before the softmax
  float norm_order;  // p > 0: the chosen weights are divided by their L-p norm
  float scale;       // multiplies them in the end
  Dtype dtype;       // of logits
  bool pdl;
};

// Softmax over all experts in float, then the top_k likeliest; of equals the first.
[[nodiscard]] cudaError_t moe_route(const RouteParams& p, cudaStream_t stream);

enum class MoeAct : uint8_t { kSilu, kGeluErf, kGeluTanh };

// A = num_tokens * top_k choices, sorted by expert and cut into tiles of tile_rows rows.
struct MoeShape {
  int num_tokens;
  int top_k;
  int num_experts;
  int hidden;  // a multiple of 8, with weights in e4m3 of 16; as size is
  int size;    // of one expert's MLP

  constexpr int choices() const { return num_tokens * top_k; }
  // More rows a tile read the weights fewer times; fewer waste less on experts with few rows.
  constexpr int tile_rows() const {
    const int mean = choices() / num_experts;
    return mean <= 24 ? 16 : mean <= 96 ? 64 : 128;
  }
  constexpr int max_tiles() const {
    const int used = choices() < num_experts ? choices() : num_experts;
    return used + choices() / tile_rows();
  }
};

// Words of the plan: the number of tiles and 3 spare, 4 words a tile (expert, first row, rows, 0),
// the sorted row of each choice, the choice of each sorted row.
constexpr int kMoePlanHeader = 4;
constexpr int kMoeTileWords = 4;
constexpr int64_t moe_plan_words(const MoeShape& s) {
  return kMoePlanHeader + static_cast<int64_t>(kMoeTileWords) * s.max_tiles() +
         2 * static_cast<int64_t>(s.choices());
}

constexpr int kMoeScaleGroup = 128;  // columns of weights that share a scale, where in blocks

struct ExpertsParams {
  MoeShape shape;
  const void* x;                // [num_tokens, hidden], rows x_stride elements apart
  const void* gate_up;          // [num_experts, 2 * size, hidden], of x's dtype or e4m3
  const void* down;             // [num_experts, hidden, size], as gate_up
  const float* gate_up_scales;  // e4m3: [num_experts, 2 * size], in blocks [.., ceil(hidden / 128)]
  const float* down_scales;     // [num_experts, hidden], in blocks [.., ceil(size / 128)]; or null
  const float* weights;         // [num_tokens, top_k]
  const int32_t* experts;       // [num_tokens, top_k]
  const void* shared;           // [num_tokens, hidden] contiguous: added; or nullptr
  const void* shared_gate;      // [num_tokens]: its sigmoid scales `shared`; or nullptr
  int32_t* plan;                // [moe_plan_words(shape)], 16-byte aligned work space
  void* narrow;                 // [choices, size] work space
  void* rows;                   // [choices, hidden] work space
  void* out;                    // [num_tokens, hidden]: sums in float, in the order of the choices
  int64_t x_stride;
  MoeAct act;
  Dtype dtype;     // bf16 or fp16: of x and what comes of it
  bool in_blocks;  // scales
  bool pdl;
};

struct WidenParams {
  const uint8_t* x;     // e4m3 [rows, columns], columns a multiple of 16
  const float* scales;  // [rows, scale_columns]
  void* out;            // [rows, columns]
  int64_t rows;
  int columns;
  int scale_columns;
  int group;    // columns that share a scale, a multiple of 16
  Dtype dtype;  // of out: bf16 or fp16
  bool pdl;
};

// out = x times its scales.
[[nodiscard]] cudaError_t moe_widen(const WidenParams& p, cudaStream_t stream);

// Four launches: the plan, gate and up with the activation, down, the sum. Weights of experts that
// no token has chosen are not read.
[[nodiscard]] cudaError_t moe_experts(const ExpertsParams& p, cudaStream_t stream);

}  // namespace srt::cuda
