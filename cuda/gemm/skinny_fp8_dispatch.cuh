// From run-time gating, depth and group count to one kernel instance, for a fixed padded row count.
#pragma once

#include "gemm/skinny_fp8_kernel.cuh"

namespace srt::cuda::skinny_fp8 {

template <int kM, int kGroups, bool kGated, bool kDeep, Scales kScales>
cudaError_t launch_skinny(const SkinnyFp8Params& p, const Args& args, int ctas,
                          cudaStream_t stream) {
  using L = Layout<kM, kGroups, kDeep>;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(args.split == 1 ? ctas : args.num_tiles * args.split));
  shape.block = dim3(L::kThreads);
  shape.smem_bytes = L::kSmemBytes;
  shape.pdl = p.pdl;
  shape.cluster = args.split;
  return launch(skinny_fp8_kernel<kM, kGroups, kGated, kDeep, kScales>, shape, stream, args);
}

template <int kM, bool kDeep, Scales kScales>
cudaError_t run_depth(const SkinnyFp8Params& p, const Args& args, int groups, int ctas,
                      cudaStream_t stream) {
  if constexpr (kM > kMaxShallowRows) {
    if (groups == 4) {
      if constexpr (kScales == Scales::kRows) {
        if (p.gated) return launch_skinny<kM, 4, true, kDeep, kScales>(p, args, ctas, stream);
      }
      return launch_skinny<kM, 4, false, kDeep, kScales>(p, args, ctas, stream);
    }
  }
  if constexpr (kScales == Scales::kRows) {
    if (p.gated) return launch_skinny<kM, 2, true, kDeep, kScales>(p, args, ctas, stream);
  }
  if (groups == 2) return launch_skinny<kM, 2, false, kDeep, kScales>(p, args, ctas, stream);
  return launch_skinny<kM, 1, false, kDeep, kScales>(p, args, ctas, stream);
}

// Weights with a scale a row.
template <int kM, Scales kScales>
cudaError_t run_rows(const SkinnyFp8Params& p, const Args& args, int groups, int ctas,
                     cudaStream_t stream) {
  if constexpr (kM <= kMaxShallowRows) {
    if (!is_deep(p)) return run_depth<kM, false, kScales>(p, args, groups, ctas, stream);
  }
  return run_depth<kM, true, kScales>(p, args, groups, ctas, stream);
}

template <int kM>
cudaError_t run_blocks(const SkinnyFp8Params& p, const Args& args, int ctas, cudaStream_t stream) {
  if (p.gated) return launch_skinny<kM, 2, true, true, Scales::kBlocks>(p, args, ctas, stream);
  return launch_skinny<kM, 2, false, true, Scales::kBlocks>(p, args, ctas, stream);
}

}  // namespace srt::cuda::skinny_fp8
