#include "cpu/linear.h"

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace srt::cpu {

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
  parallel_ranges(p.out, p.rows * p.in * p.out, [&](int64_t b, int64_t e) { k.linear(p, b, e); });
}

}  // namespace srt::cpu
