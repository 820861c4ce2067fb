// The launcher of the skinny fp8 GEMM: checks, shape-dependent choices, tensor maps.
#include <algorithm>

#include "common/tensor_map.h"
#include "gemm/skinny_fp8.h"
#include "gemm/skinny_fp8_kernel.cuh"

namespace srt::cuda {
namespace skinny_fp8 {
namespace {

constexpr int kMaxRows = 64;  // of products with a scale a row of w; more are gemm/wide_fp8's

struct Shape {
  int groups;
  int split;
  int ctas;
  bool paired;
};

// Measured on an H100. Few tiles are split along k as long as each CTA keeps 4 blocks; where tiles
// fill half of the SMs, a CTA must keep 48, or the reduction costs more than idle SMs. From 33 rows
// on x takes as much of L2's rate as w, so large matrices get the tallest tiles.
Shape choose_shape(const SkinnyFp8Params& p) {
  const int sms = num_sms();
  const bool two_fit = !is_deep(p);
  const bool is_tall =
      p.m > kMaxShallowRows && !p.grouped && div_up(p.n, 4 * kGroupRows) * 5 >= sms * 4;
  Shape s{p.row_groups, p.split, p.ctas, false};
  if (s.groups == 0) s.groups = is_tall ? 4 : div_up(p.n, 2 * kGroupRows) >= sms ? 2 : 1;
  if (p.grouped || (p.gated && s.groups == 1)) s.groups = 2;
  const int tiles = div_up(p.n, s.groups * kGroupRows);
  s.paired = p.y_scales != nullptr && s.groups * kGroupRows / 2 < kFp8Group;
  if (p.y_scales != nullptr) s.split = 1;
  if (s.split == 0) {
    const int most = (two_fit ? sms * 3 / 2 : sms) / tiles;
    const int min_blocks = p.m <= 64 && tiles * 2 >= sms - 8 ? 48 : 4;
    s.split = std::clamp(std::min(most, div_up(p.k, kBlockK) / min_blocks), 1, kMaxSplit);
  }
  if (s.ctas == 0) {
    const int slots = two_fit && s.groups == 1 ? 2 * sms : sms;
    const int walks = s.paired ? tiles / 2 : tiles;
    s.ctas = div_up(walks, div_up(walks, slots));  // every CTA walks the same number of tiles
  }
  return s;
}

template <int kM>
cudaError_t run_padded(const SkinnyFp8Params& p, const Args& args, const Shape& s,
                       cudaStream_t stream) {
  if (p.grouped) return run_blocks<kM>(p, args, s.ctas, stream);
  if constexpr (kM <= kMaxRows) {
    if (p.x_scale_stride != 0)
      return run_rows<kM, Scales::kGroups>(p, args, s.groups, s.ctas, stream);
    return run_rows<kM, Scales::kRows>(p, args, s.groups, s.ctas, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t run(const SkinnyFp8Params& p, const Args& args, const Shape& s, cudaStream_t stream) {
  if (p.m <= 8) return run_padded<8>(p, args, s, stream);
  if (p.m <= 16) return run_padded<16>(p, args, s, stream);
  if (p.m <= 32) return run_padded<32>(p, args, s, stream);
  if (p.m <= 64) return run_padded<64>(p, args, s, stream);
  return run_padded<128>(p, args, s, stream);
}

int padded_rows(int m) {
  int rows = 8;
  while (rows < m) rows *= 2;
  return rows;
}

bool is_valid(const SkinnyFp8Params& p) {
  const bool odd_size = p.m < 0 || p.m > 128 || p.n % (p.gated ? 16 : 8) != 0 || p.k % 16 != 0;
  const bool odd_shape = p.split > kMaxSplit || p.row_groups == 3 || p.row_groups > 4 ||
                         (p.row_groups == 4 && p.m <= kMaxShallowRows);
  const bool in_groups = p.x_scale_stride != 0;
  const bool odd_x =
      in_groups && (p.one_x_scale || p.x_scale_stride % 8 != 0 || (p.gated && !p.grouped));
  const bool odd_y =
      ((p.y_scale != nullptr || p.y_scales != nullptr) && !p.gated) ||
      (p.y_scales != nullptr && (p.y_scale != nullptr || p.grouped || p.n % (2 * kFp8Group) != 0));
  return !odd_size && !odd_shape && !(p.gated && p.bias != nullptr) && !odd_x && !odd_y &&
         (p.grouped ? in_groups : p.m <= kMaxRows);
}

}  // namespace
}  // namespace skinny_fp8

cudaError_t skinny_fp8_gemm(const SkinnyFp8Params& p, cudaStream_t stream) {
  using namespace skinny_fp8;
  if (p.m == 0) return cudaSuccess;
  if (!is_valid(p)) return cudaErrorInvalidValue;
  const Shape s = choose_shape(p);
  Args args;
  args.x_scales = p.x_scales;
  args.w_scales = p.w_scales;
  args.bias = static_cast<const Out*>(p.bias);
  args.y = p.y;
  args.y_scale = p.y_scale;
  args.y_scales = p.y_scales;
  args.y_scale_stride = p.y_scale_stride;
  args.paired = s.paired;
  args.y_stride = p.y_stride;
  args.x_scale_stride = p.x_scale_stride;
  args.x_scale_step = p.one_x_scale ? 0 : 1;
  args.m = p.m;
  args.n = p.n;
  args.num_tiles = div_up(p.n, s.groups * kGroupRows);
  args.num_k_blocks = div_up(p.k, kBlockK);
  args.split = std::min(s.split, args.num_k_blocks);
  cudaError_t e = make_byte_map(p.w, p.n, p.k, p.k, kGroupRows, &args.w_map);
  if (e != cudaSuccess) return e;
  e = make_byte_map(p.x, p.m, p.k, p.x_stride, padded_rows(p.m), &args.x_map);
  if (e != cudaSuccess) return e;
  return run(p, args, s, stream);
}

}  // namespace srt::cuda
