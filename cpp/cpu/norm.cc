#include "cpu/norm.h"

#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace srt::cpu {

void rms_norm(const RmsNormParams& p) {
  const auto kernel = kernels().rms_norm;
  parallel_ranges(p.rows, p.rows * p.size, [&](int64_t b, int64_t e) { kernel(p, b, e); });
}

void layer_norm(const LayerNormParams& p) {
  const auto kernel = kernels().layer_norm;
  parallel_ranges(p.rows, p.rows * p.size, [&](int64_t b, int64_t e) { kernel(p, b, e); });
}

}  // namespace srt::cpu
