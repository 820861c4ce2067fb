#include "cpu/linear.h"

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace srt::cpu {
namespace {

constexpr int64_t kGrainRows = 24;  // of the weight: a panel of linear_kernel.h
constexpr int64_t kGrainBytes = 1 << 17;

}  // namespace

void linear(LinearParams p) {
  if (p.rows == 0 || p.out == 0) return;
  const Kernels& k = kernels();
  if (p.dtype == DType::kF32) {
    p.x32 = static_cast<const float*>(p.x);
    p.x32_stride = p.x_stride;
  } else {
    float* x32 = scratch(Scratch::kShared, static_cast<size_t>(p.rows * p.in));
    k.to_float(p.dtype, p.x, p.rows, p.in, p.x_stride, x32);
    p.x32 = x32;
    p.x32_stride = p.in;
  }
  const auto row_bytes = p.in * static_cast<int64_t>(dtype_bytes(p.dtype));
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (row_bytes * kGrainRows)) * kGrainRows;
  parallel_grains(p.out, grain, p.rows * p.in * p.out,
                  [&](int64_t b, int64_t e) { k.linear(p, b, e); });
}

}  // namespace srt::cpu
