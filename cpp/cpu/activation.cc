#include "cpu/activation.h"

#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace srt::cpu {

void gated(const GatedParams& p) {
  const auto kernel = kernels().gated;
  parallel_ranges(p.rows, p.rows * p.size * 4, [&](int64_t b, int64_t e) { kernel(p, b, e); });
}

}  // namespace srt::cpu
