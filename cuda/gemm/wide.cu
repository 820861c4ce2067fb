// The launcher of the wide GEMM: checks, shape-dependent choices, tensor maps.
#include <span>

#include "common/tensor_map.h"
#include "gemm/wide.h"
#include "gemm/wide_kernel.cuh"

namespace srt::cuda {
namespace wide {

template <int kN, bool kGated>
cudaError_t run_tile(const WideGemmParams& p, const Args& args, int pair, cudaStream_t stream);

namespace {

struct Shape {
  int tile;
  int split;
  int pair;
};

constexpr int kTiles[] = {128, 192, 256};
constexpr int kGatedTiles[] = {128, 224};
constexpr int kMinBlocks = 4;  // of k, for each rank of a split

int num_items(const WideGemmParams& p, int tile, int pair) {
  const int tiles = p.gated ? div_up(p.n / 2, tile / 2) : div_up(p.n, tile);
  return tiles * div_up(p.m, pair * kRows);
}

// How many clusters of `size` CTAs run at once, at one CTA an SM. Measured on an H100: 32 clusters
// of four do not, because a cluster stays within its GPC, whose SMs are not all multiples of four.
int num_clusters(int size) {
  if (size <= 2) return num_sms() / size;
  return size == 4 ? num_sms() * 7 / 8 / 4 : num_sms() * 3 / 4 / size;
}

// Weight rows times blocks of k that the busiest SM walks, and what a split costs on top.
int cost(const WideGemmParams& p, const Shape& s) {
  constexpr int kReduce = 1024;
  const int clusters = num_clusters(s.pair * s.split);
  const int waves = div_up(num_items(p, s.tile, s.pair), clusters);
  const int blocks = div_up(div_up(p.k, kBlockK), s.split);
  return waves * (s.tile * blocks + (s.split > 1 ? kReduce : 0));
}

Shape choose_shape(const WideGemmParams& p) {
  const int pair = p.pair != 0 ? p.pair : p.m > kRows ? 2 : 1;
  const std::span<const int> tiles = p.gated ? std::span<const int>(kGatedTiles) : kTiles;
  Shape best{0, 0, pair};
  int least = 0;
  for (const int tile : tiles) {
    if (p.tile != 0 && p.tile != tile) continue;
    for (int split = 1; split * pair <= kMaxCluster; split *= 2) {
      if (p.split != 0 && p.split != split) continue;
      if (p.split == 0 && split > 1 && div_up(p.k, kBlockK) < split * kMinBlocks) continue;
      const Shape s{tile, split, pair};
      const int c = cost(p, s);
      if (best.tile == 0 || c < least) best = s, least = c;
    }
  }
  return best;
}

cudaError_t run(const WideGemmParams& p, const Args& args, const Shape& s, cudaStream_t stream) {
  if (p.gated && s.tile == 128) return run_tile<128, true>(p, args, s.pair, stream);
  if (p.gated) return run_tile<224, true>(p, args, s.pair, stream);
  if (s.tile == 128) return run_tile<128, false>(p, args, s.pair, stream);
  if (s.tile == 192) return run_tile<192, false>(p, args, s.pair, stream);
  return run_tile<256, false>(p, args, s.pair, stream);
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
  args.num_items = num_items(p, s.tile, s.pair);
  args.row_blocks = div_up(p.m, s.pair * kRows);
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
