// From run-time choices to the kernel instance of a tile.
#pragma once

#include <algorithm>

#include "gemm/wide_fp8_kernel.cuh"

namespace srt::cuda::wide_fp8 {

struct Shape {
  int tile;
  int split;
  int ctas;
  int stages;  // 0: as many as fit
};

// Shared memory of a CTA. Some is left to the small kernels before and after, which may then start
// while this one runs, or they would wait for its end.
constexpr int kBudget = 176 * 1024;
constexpr int kMaxSmem = 227 * 1024;

// Launches the instance of a tile. The caller has set all of `args` but the stages.
template <int kN>
cudaError_t run_tile(const WideFp8Params& p, Args& args, const Shape& s, cudaStream_t stream) {
  const int fit = (kBudget - smem_bytes<kN>(0, args.split)) / stage_bytes<kN>();
  // No more than a tile has: a tile's scales must not overtake those of the tile before last.
  const int most = div_up(args.num_k_blocks, args.split);
  args.stages = std::min(s.stages == 0 ? fit : s.stages, most);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(args.split == 1 ? s.ctas : args.num_tiles * args.split));
  shape.block = dim3(kThreads);
  shape.smem_bytes = static_cast<size_t>(smem_bytes<kN>(args.stages, args.split));
  shape.pdl = p.pdl;
  shape.cluster = args.split;
  if (shape.smem_bytes > kMaxSmem) return cudaErrorInvalidValue;
  return launch(wide_fp8_kernel<kN>, shape, stream, args);
}

}  // namespace srt::cuda::wide_fp8
