// Experts' matrices in e4m3 written out in 16 bits, for products that take no fp8.
#include "common/fp8.cuh"
#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "moe/moe.h"

namespace srt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLane = 16;

// Parallel  16 values a thread.
// Bound     HBM: 3 bytes a value.
// Numerics  value * scale in float, rounded once to T.
template <typename T>
__global__ void __launch_bounds__(kThreads) widen_kernel(const __grid_constant__ WidenParams p) {
  ptx::grid_launch();
  ptx::grid_wait();
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int lanes = p.columns / kLane;
  const int64_t row = item / lanes;
  if (row >= p.rows) return;
  const int column = static_cast<int>(item % lanes) * kLane;
  const float scale = p.scales[row * p.scale_columns + column / p.group];
  const uint4 stored = *reinterpret_cast<const uint4*>(p.x + row * p.columns + column);
  const uint32_t words[4] = {stored.x, stored.y, stored.z, stored.w};
  float wide[kLane];
#pragma unroll
  for (int i = 0; i < kLane / 2; ++i) {
    const auto pair = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
    const float2 two = __half22float2(fp8x2_to_half2<Fp8::kE4M3>(pair));
    wide[2 * i] = two.x * scale;
    wide[2 * i + 1] = two.y * scale;
  }
  T* const out = static_cast<T*>(p.out) + row * p.columns + column;
  float half[8];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int i = 0; i < 8; ++i) half[i] = wide[8 * h + i];
    store_floats(out + 8 * h, half);
  }
}

}  // namespace

cudaError_t moe_widen(const WidenParams& p, cudaStream_t stream) {
  const int64_t items = p.rows * (p.columns / kLane);
  if (items == 0) return cudaSuccess;
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(div_up(items, static_cast<int64_t>(kThreads)))),
      .block = dim3(kThreads),
      .pdl = p.pdl};
  return p.dtype == Dtype::kBF16 ? launch(widen_kernel<__nv_bfloat16>, shape, stream, p)
                                 : launch(widen_kernel<__half>, shape, stream, p);
}

}  // namespace srt::cuda
