// The launcher of the wide fp8 GEMM: checks, shape-dependent choices, tensor maps.
#include <algorithm>

#include "common/tensor_map.h"
#include "gemm/wide_fp8.h"
#include "gemm/wide_fp8_dispatch.cuh"

namespace srt::cuda {
namespace wide_fp8 {
namespace {

constexpr int kTiles[] = {48, 64, 96};

// CTAs in clusters of `split` that run at once, at one CTA an SM: a cluster stays within its GPC.
int num_slots(int split) {
  if (split <= 2) return num_sms();
  return split == 3 ? num_sms() * 7 / 8 : num_sms() * 4 / 5;
}

// Rows of x and w that the busiest SM reads, times blocks of k; more where SMs stay idle, and what
// a split costs on top. Fitted to an H100.
int64_t cost(const WideFp8Params& p, int tile, int split) {
  const int ctas = div_up(p.n, tile) * split;
  const int slots = num_slots(split);
  const int64_t blocks = div_up(div_up(p.k, kBlockK), split);
  const int64_t walk = div_up(ctas, slots) * blocks * (kRows + tile);
  return walk * num_sms() / std::min(ctas, slots) + (split - 1) * tile * 4;
}

// Tile 0 where none is as asked for.
Shape choose_shape(const WideFp8Params& p) {
  const int most = std::min(kMaxSplit, div_up(p.k, kBlockK));
  Shape s{0, 0, p.ctas, p.stages};
  int64_t least = 0;
  for (const int tile : kTiles) {
    if (p.tile != 0 && p.tile != tile) continue;
    for (int split = 1; split <= most; ++split) {
      if (p.split != 0 && std::min(p.split, most) != split) continue;
      const int64_t c = cost(p, tile, split);
      if (least != 0 && c >= least) continue;
      s.tile = tile, s.split = split, least = c;
    }
  }
  if (s.ctas == 0 && s.tile != 0) {
    const int tiles = div_up(p.n, s.tile);
    s.ctas = div_up(tiles, div_up(tiles, num_sms()));  // every CTA walks as many tiles
  }
  return s;
}

bool is_valid(const WideFp8Params& p) {
  return p.m >= 0 && p.m <= kRows && p.n % 8 == 0 && p.k % 16 == 0 && p.k > 0 && p.split >= 0 &&
         p.split <= kMaxSplit && p.stages != 1 && p.x_scale_stride % 8 == 0 &&
         (p.x_scale_stride == 0 || (p.x_scale_stride >= p.m && !p.one_x_scale));
}

}  // namespace
}  // namespace wide_fp8

cudaError_t wide_fp8_gemm(const WideFp8Params& p, cudaStream_t stream) {
  using namespace wide_fp8;
  if (p.m == 0) return cudaSuccess;
  if (!is_valid(p)) return cudaErrorInvalidValue;
  const Shape s = choose_shape(p);
  if (s.tile == 0) return cudaErrorInvalidValue;
  Args args{};
  args.x_scales = p.x_scales;
  args.w_scales = p.w_scales;
  args.bias = static_cast<const Out*>(p.bias);
  args.y = static_cast<Out*>(p.y);
  args.y_stride = p.y_stride;
  args.x_scale_stride = p.x_scale_stride;
  args.x_scale_step = p.one_x_scale ? 0 : 1;
  args.m = p.m;
  args.n = p.n;
  args.box_rows = round_up(p.m, kBoxRows);
  args.num_tiles = div_up(p.n, s.tile);
  args.num_k_blocks = div_up(p.k, kBlockK);
  args.split = s.split;
  cudaError_t e = make_byte_map(p.w, p.n, p.k, p.k, s.tile, &args.w_map);
  if (e != cudaSuccess) return e;
  e = make_byte_map(p.x, p.m, p.k, p.x_stride, args.box_rows, &args.x_map);
  if (e != cudaSuccess) return e;
  if (s.tile == 48) return run_tile<48>(p, args, s, stream);
  if (s.tile == 64) return run_tile<64>(p, args, s, stream);
  return run_tile<96>(p, args, s, stream);
}

}  // namespace srt::cuda
