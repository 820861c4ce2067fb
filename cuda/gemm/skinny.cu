// The launcher of the skinny GEMM: checks, shape-dependent choices, tensor maps.
#include <algorithm>

#include "common/tensor_map.h"
#include "gemm/skinny.h"
#include "gemm/skinny_kernel.cuh"

namespace srt::cuda {
namespace skinny {

template <int kM>
cudaError_t run_rows(const SkinnyGemmParams& p, const Args& args, int groups, int ctas,
                     cudaStream_t stream);

namespace {

struct Shape {
  int groups;
  int split;
  int ctas;
};

// Measured on an H100: splits pay until about 1.5 CTAs an SM where two fit (up to 32 rows), one
// where one fits, as long as each keeps 7 blocks of k; many tiles are better walked by persistent
// CTAs.
Shape choose_shape(const SkinnyGemmParams& p) {
  constexpr int kMinBlocks = 7;
  const int sms = num_sms();
  const bool two_fit = !is_deep(p);
  const int rows = p.gated ? p.n / 2 : p.n;
  Shape s{p.row_groups, p.split, p.ctas};
  if (p.gated) s.groups = 2;
  if (s.groups == 0) s.groups = div_up(rows, 2 * kGroupRows) >= sms ? 2 : 1;
  const int tiles = div_up(rows, p.gated ? kGroupRows : s.groups * kGroupRows);
  if (s.split == 0) {
    const int most = (two_fit ? sms * 3 / 2 : sms) / tiles;
    s.split = std::clamp(std::min(most, div_up(p.k, kBlockK) / kMinBlocks), 1, kMaxSplit);
    // Clusters of more than two that fill their SMs do not tile a GPC: a few would run alone.
    while (!two_fit && s.split > 2 && tiles * s.split > sms * 7 / 8) --s.split;
  }
  if (s.ctas == 0) {
    const int slots = two_fit && s.groups == 1 ? 2 * sms : sms;
    s.ctas = div_up(tiles, div_up(tiles, slots));  // every CTA walks the same number of tiles
  }
  return s;
}

cudaError_t run(const SkinnyGemmParams& p, const Args& args, const Shape& s, cudaStream_t stream) {
  if (p.m <= 8) return run_rows<8>(p, args, s.groups, s.ctas, stream);
  if (p.m <= 16) return run_rows<16>(p, args, s.groups, s.ctas, stream);
  if (p.m <= 32) return run_rows<32>(p, args, s.groups, s.ctas, stream);
  if (p.m <= 64) return run_rows<64>(p, args, s.groups, s.ctas, stream);
  return run_rows<128>(p, args, s.groups, s.ctas, stream);
}

int padded_rows(int m) {
  int rows = 8;
  while (rows < m) rows *= 2;
  return rows;
}

}  // namespace
}  // namespace skinny

cudaError_t skinny_gemm(const SkinnyGemmParams& p, cudaStream_t stream) {
  using namespace skinny;
  if (p.m == 0) return cudaSuccess;
  const bool bad_size = p.m < 0 || p.m > 128 || p.n % (p.gated ? 16 : 8) != 0 || p.k % 8 != 0;
  if (bad_size || p.dtype == Dtype::kF32 || (p.gated && p.bias != nullptr) || p.split > kMaxSplit ||
      p.row_groups > 2) {
    return cudaErrorInvalidValue;
  }
  const Shape s = choose_shape(p);
  Args args;
  args.bias = p.bias;
  args.y = p.y;
  args.y_stride = p.y_stride;
  args.m = p.m;
  args.n = p.n;
  args.num_tiles = div_up(p.gated ? p.n / 2 : p.n, p.gated ? kGroupRows : s.groups * kGroupRows);
  args.num_k_blocks = div_up(p.k, kBlockK);
  args.split = std::min(s.split, args.num_k_blocks);
  cudaError_t e = make_map({p.w, p.dtype, p.n, p.k, p.k, kGroupRows}, &args.w_map);
  if (e != cudaSuccess) return e;
  e = make_map({p.x, p.dtype, p.m, p.k, p.x_stride, padded_rows(p.m)}, &args.x_map);
  if (e != cudaSuccess) return e;
  return run(p, args, s, stream);
}

}  // namespace srt::cuda
