// From run-time dtype, gating and group count to one kernel instance, for a fixed padded row count.
#pragma once

#include "gemm/skinny_kernel.cuh"

namespace srt::cuda::skinny {

template <typename T, int kM>
cudaError_t run_typed(const SkinnyGemmParams& p, const Args& args, int groups, int ctas,
                      cudaStream_t stream) {
  if (p.gated) return launch_skinny<T, kM, 2, true>(p, args, ctas, stream);
  if (groups == 2) return launch_skinny<T, kM, 2, false>(p, args, ctas, stream);
  return launch_skinny<T, kM, 1, false>(p, args, ctas, stream);
}

template <int kM>
cudaError_t run_rows(const SkinnyGemmParams& p, const Args& args, int groups, int ctas,
                     cudaStream_t stream) {
  if (p.dtype == Dtype::kBF16) return run_typed<__nv_bfloat16, kM>(p, args, groups, ctas, stream);
  return run_typed<__half, kM>(p, args, groups, ctas, stream);
}

}  // namespace srt::cuda::skinny
