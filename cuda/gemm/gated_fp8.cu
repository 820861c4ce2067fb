// The launcher of the gated fp8 GEMM: checks, shape-dependent choices, tensor maps.
#include <algorithm>

#include "common/tensor_map.h"
#include "gemm/gated_fp8.h"
#include "gemm/gated_fp8_kernel.cuh"

namespace srt::cuda {
namespace gated_fp8 {
namespace {

constexpr int kBoxRows = 8;  // x comes in multiples of so many rows
constexpr int kMaxSmem = 227 * 1024;

// Measured on an H100 among the kernels of a layer: more stages gain nothing, and with fewer the
// small kernels before and after find room while this one runs.
constexpr int kStages = 3;

bool is_valid(const GatedFp8Params& p) {
  const bool odd_stages =
      p.stages == 1 || p.x_stages == 1 || (p.stages != 0 && p.x_stages > p.stages);
  const bool odd_y = p.y_scales != nullptr && (p.y_scale != nullptr || p.n % kTileRows != 0);
  return p.m >= 0 && p.m <= kRows && p.n % 32 == 0 && p.k > 0 && p.k % 16 == 0 && !odd_stages &&
         !odd_y;
}

}  // namespace
}  // namespace gated_fp8

cudaError_t gated_fp8_gemm(const GatedFp8Params& p, cudaStream_t stream) {
  using namespace gated_fp8;
  if (p.m == 0) return cudaSuccess;
  if (!is_valid(p)) return cudaErrorInvalidValue;
  Args args{};
  args.x_scales = p.x_scales;
  args.w_scales = p.w_scales;
  args.y = p.y;
  args.y_scale = p.y_scale;
  args.y_scales = p.y_scales;
  args.y_scale_stride = p.y_scale_stride;
  args.y_stride = p.y_stride;
  args.x_scale_step = p.one_x_scale ? 0 : 1;
  args.m = p.m;
  args.num_cols = p.n / 2;
  args.box_rows = round_up(p.m, kBoxRows);
  const int tiles = div_up(args.num_cols, kCols);
  args.num_tiles = tiles;
  args.num_k_blocks = div_up(p.k, kBlockK);
  // No more than a tile has: a tile's scales must not overtake those of the tile before last.
  args.stages = std::min(p.stages != 0 ? p.stages : kStages, args.num_k_blocks);
  args.x_stages = std::min(p.x_stages != 0 ? p.x_stages : kStages, args.stages);
  cudaError_t e = make_byte_map(p.w, p.n, p.k, p.k, kCols, &args.w_map);
  if (e != cudaSuccess) return e;
  e = make_byte_map(p.x, p.m, p.k, p.x_stride, args.box_rows, &args.x_map);
  if (e != cudaSuccess) return e;
  const int ctas = p.ctas != 0 ? p.ctas : div_up(tiles, div_up(tiles, num_sms()));
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(std::min(ctas, tiles)));
  shape.block = dim3(kThreads);
  shape.smem_bytes = static_cast<size_t>(smem_bytes(args.stages, args.x_stages));
  shape.pdl = p.pdl;
  if (shape.smem_bytes > kMaxSmem) return cudaErrorInvalidValue;
  return launch(gated_fp8_kernel, shape, stream, args);
}

}  // namespace srt::cuda
