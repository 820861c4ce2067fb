#include "cpu/linear.h"

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace srt::cpu {
namespace {

constexpr int64_t kGrainRows = 24;      // of the weight: a panel of linear_kernel.h
constexpr int64_t kTileGrainRows = 32;  // of tile_linear.h
constexpr int64_t kGrainBytes = 1 << 17;

int64_t grain_of(const LinearParams& p, int64_t rows) {
  const size_t weight_bytes = p.scales != nullptr ? 1 : dtype_bytes(p.dtype);
  const auto row_bytes = p.in * static_cast<int64_t>(weight_bytes);
  return std::max<int64_t>(1, kGrainBytes / (row_bytes * rows)) * rows;
}

void linear_on_tiles(const Kernels& k, const LinearParams& p) {
  auto* packed = reinterpret_cast<uint32_t*>(
      scratch(Scratch::kShared, static_cast<size_t>(k.packed_words(p))));
  k.pack_tokens(p, packed);
  parallel_grains(p.out, grain_of(p, kTileGrainRows), p.rows * p.in * p.out,
                  [&](int64_t b, int64_t e) { k.tile_linear(p, packed, b, e); });
}

}  // namespace

void linear(LinearParams p) {
  if (p.rows == 0 || p.out == 0) return;
  const Kernels& k = kernels();
  const bool is_bf16 = p.dtype == DType::kBF16 && p.scales == nullptr;
  if (is_bf16 && k.tile_linear != nullptr) return linear_on_tiles(k, p);
  if (p.dtype == DType::kF32) {
    p.x32 = static_cast<const float*>(p.x);
    p.x32_stride = p.x_stride;
  } else {
    float* x32 = scratch(Scratch::kShared, static_cast<size_t>(p.rows * p.in));
    k.to_float(p.dtype, p.x, p.rows, p.in, p.x_stride, x32);
    p.x32 = x32;
    p.x32_stride = p.in;
  }
  parallel_grains(p.out, grain_of(p, kGrainRows), p.rows * p.in * p.out,
                  [&](int64_t b, int64_t e) { k.linear(p, b, e); });
}

}  // namespace srt::cpu
