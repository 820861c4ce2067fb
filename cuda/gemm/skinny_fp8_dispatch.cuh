// From run-time gating, depth and group count to one kernel instance, for a fixed padded row count.
#pragma once

#include "gemm/skinny_fp8_kernel.cuh"

namespace srt::cuda::skinny_fp8 {

template <int kM, bool kDeep>
cudaError_t run_depth(const SkinnyFp8Params& p, const Args& args, int groups, int ctas,
                      cudaStream_t stream) {
  if constexpr (kM > kMaxShallowRows) {
    if (groups == 4) {
      if (p.gated) return launch_skinny<kM, 4, true, kDeep, false>(p, args, ctas, stream);
      return launch_skinny<kM, 4, false, kDeep, false>(p, args, ctas, stream);
    }
  }
  if (p.gated) return launch_skinny<kM, 2, true, kDeep, false>(p, args, ctas, stream);
  if (groups == 2) return launch_skinny<kM, 2, false, kDeep, false>(p, args, ctas, stream);
  return launch_skinny<kM, 1, false, kDeep, false>(p, args, ctas, stream);
}

template <int kM>
cudaError_t run_rows(const SkinnyFp8Params& p, const Args& args, int groups, int ctas,
                     cudaStream_t stream) {
  if constexpr (kM <= kMaxShallowRows) {
    if (!is_deep(p)) return run_depth<kM, false>(p, args, groups, ctas, stream);
  }
  return run_depth<kM, true>(p, args, groups, ctas, stream);
}

template <int kM>
cudaError_t run_grouped(const SkinnyFp8Params& p, const Args& args, int ctas, cudaStream_t stream) {
  if (p.gated) return launch_skinny<kM, 2, true, true, true>(p, args, ctas, stream);
  return launch_skinny<kM, 2, false, true, true>(p, args, ctas, stream);
}

}  // namespace srt::cuda::skinny_fp8
