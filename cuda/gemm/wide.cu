// The launcher of the wide GEMM: checks, shape-dependent choices, tensor maps.
#include <algorithm>
#include <span>

#include "common/tensor_map.h"
#include "gemm/wide_launch.h"

namespace srt::cuda {
namespace wide {

namespace {

struct Shape {
  int tile;
  int split;
  int pair;
  int rows;
};

constexpr int kTiles[] = {128, 192, 256};
constexpr int kGatedTiles[] = {128, 224};
constexpr int kMinBlocks = 4;  // of k, for each rank of a split
constexpr int kRows = 128;     // of x a CTA takes, with any tile
constexpr int kMoreRows = 192;
constexpr int kMultiplyRows = 160;  // as many rows of w by one of x multiply while one row comes in

int num_items(const WideGemmParams& p, const Shape& s) {
  const int tiles = p.gated ? div_up(p.n / 2, s.tile / 2) : div_up(p.n, s.tile);
  return tiles * div_up(p.m, s.pair * s.rows);
}

bool has_more_rows(const WideGemmParams& p, int tile) { return tile == (p.gated ? 224 : 192); }

// How many clusters of `size` CTAs run at once, at one CTA an SM. Measured on an H100: 32 clusters
// of four do not, because a cluster stays within its GPC, whose SMs are not all multiples of four.
int num_clusters(int size) {
  if (size <= 2) return num_sms() / size;
  return size == 4 ? num_sms() * 7 / 8 / 4 : num_sms() * 3 / 4 / size;
}

// What the busiest SM fetches, in rows of 64 values, and what a split costs on top.
int cost(const WideGemmParams& p, const Shape& s) {
  constexpr int kReduce = 1024;
  const int clusters = num_clusters(s.pair * s.split);
  const int waves = div_up(num_items(p, s), clusters);
  const int blocks = div_up(div_up(p.k, kBlockK), s.split);
  const int x_rows = std::min(s.rows, p.m);
  const int fetched = std::max(s.tile / s.pair + x_rows, s.tile * x_rows / kMultiplyRows);
  return waves * (fetched * blocks + (s.split > 1 ? kReduce : 0));
}

Shape choose_shape(const WideGemmParams& p) {
  const std::span<const int> tiles = p.gated ? std::span<const int>(kGatedTiles) : kTiles;
  Shape best{0, 0, 0, 0};
  int least = 0;
  for (const int rows : {kRows, kMoreRows}) {
    const int pair = p.pair != 0 ? p.pair : p.m > rows ? 2 : 1;
    for (const int tile : tiles) {
      if (p.rows != 0 && p.rows != rows) continue;
      if (p.tile != 0 && p.tile != tile) continue;
      if (rows == kMoreRows && !has_more_rows(p, tile)) continue;
      for (int split = 1; split * pair <= kMaxCluster; split *= 2) {
        if (p.split != 0 && p.split != split) continue;
        if (p.split == 0 && split > 1 && div_up(p.k, kBlockK) < split * kMinBlocks) continue;
        const Shape s{tile, split, pair, rows};
        const int c = cost(p, s);
        if (best.tile == 0 || c < least) best = s, least = c;
      }
    }
  }
  return best;
}

cudaError_t run(const WideGemmParams& p, const Args& args, const Shape& s, cudaStream_t stream) {
  if (p.gated && s.rows == kMoreRows) return run_tile<224, 3, true>(p, args, s.pair, stream);
  if (p.gated && s.tile == 128) return run_tile<128, 2, true>(p, args, s.pair, stream);
  if (p.gated) return run_tile<224, 2, true>(p, args, s.pair, stream);
  if (s.rows == kMoreRows) return run_tile<192, 3, false>(p, args, s.pair, stream);
  if (s.tile == 128) return run_tile<128, 2, false>(p, args, s.pair, stream);
  if (s.tile == 192) return run_tile<192, 2, false>(p, args, s.pair, stream);
  return run_tile<256, 2, false>(p, args, s.pair, stream);
}

}  // namespace
}  // namespace wide

cudaError_t wide_gemm(const WideGemmParams& p, cudaStream_t stream) {
  using namespace wide;
  if (p.m == 0) return cudaSuccess;
  const bool bad_size = p.m < 0 || p.n % (p.gated ? 16 : 8) != 0 || p.k % 8 != 0 || p.k == 0;
  if (bad_size || p.dtype == Dtype::kF32 || (p.gated && (p.bias != nullptr || p.add)) ||
      p.pair < 0 || p.pair > 2) {
    return cudaErrorInvalidValue;
  }
  const Shape s = choose_shape(p);
  if (s.tile == 0) return cudaErrorInvalidValue;
  Args args;
  args.bias = p.bias;
  args.y = p.y;
  args.y_stride = p.y_stride;
  args.m = p.m;
  args.n = p.n;
  args.num_items = num_items(p, s);
  args.row_blocks = div_up(p.m, s.pair * s.rows);
  args.num_k_blocks = div_up(p.k, kBlockK);
  args.split = s.split;
  args.add = p.add;
  if (args.split > args.num_k_blocks) return cudaErrorInvalidValue;
  cudaError_t e = make_map({p.w, p.dtype, p.n, p.k, p.k, s.tile / 2}, &args.w_map);
  if (e != cudaSuccess) return e;
  e = make_map({p.x, p.dtype, p.m, p.k, p.x_stride, kBoxRows}, &args.x_map);
  if (e != cudaSuccess) return e;
  return run(p, args, s, stream);
}

}  // namespace srt::cuda
