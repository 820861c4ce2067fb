// Gated activations: out = act(gate) * up, where x holds gate and up side by side.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace srt::cpu {

enum class Gate : uint8_t { kSilu, kGelu, kGeluTanh };

struct GatedParams {
  DType dtype;    // f32, bf16 or f16
  const void* x;  // [rows, 2 * size], row stride x_stride
  void* out;      // [rows, size] contiguous
  int64_t rows, size, x_stride;
  Gate gate;
};

void gated(const GatedParams& p);

}  // namespace srt::cpu
