// From run-time dtype, gating and group count to one kernel instance, for a fixed padded row count.
#pragma once

#include "gemm/skinny_kernel.cuh"

namespace srt::cuda::skinny {

template <typename T, int kM, bool kDeep>
cudaError_t run_typed(const SkinnyGemmParams& p, const Args& args, int groups, int ctas,
                      cudaStream_t stream) {
  if (p.gated) return launch_skinny<T, kM, 2, true, kDeep>(p, args, ctas, stream);
  if (groups == 2) return launch_skinny<T, kM, 2, false, kDeep>(p, args, ctas, stream);
  return launch_skinny<T, kM, 1, false, kDeep>(p, args, ctas, stream);
}

template <typename T, int kM>
cudaError_t run_depth(const SkinnyGemmParams& p, const Args& args, int groups, int ctas,
                      cudaStream_t stream) {
  if constexpr (kM <= kMaxShallowRows) {
    if (!is_deep(p)) return run_typed<T, kM, false>(p, args, groups, ctas, stream);
  }
  return run_typed<T, kM, true>(p, args, groups, ctas, stream);
}

template <int kM>
cudaError_t run_rows(const SkinnyGemmParams& p, const Args& args, int groups, int ctas,
                     cudaStream_t stream) {
  if (p.dtype == Dtype::kBF16) return run_depth<__nv_bfloat16, kM>(p, args, groups, ctas, stream);
  return run_depth<__half, kM>(p, args, groups, ctas, stream);
}

}  // namespace srt::cuda::skinny
