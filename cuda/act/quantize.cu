// Rows of 16-bit values to e4m3.
//
// Shapes    see QuantizeParams.
// Parallel  one block a row, 8 to 32 values a thread, kept in registers.
// Bound     HBM: num_rows * width * (one value read + 1 B written).
// Numerics  round to nearest even, saturating; scales are max / 448, or as Fp8Rows says.
#include "act/quantize.h"
#include "common/fp8_rows.cuh"
#include "common/ptx.cuh"

namespace srt::cuda {
namespace {

constexpr int kMaxThreads = 1024;

template <typename T, int kVecs>
__global__ void __launch_bounds__(kMaxThreads)
    quantize_kernel(const __grid_constant__ QuantizeParams p) {
  __shared__ float scratch[kWarpSize];
  ptx::grid_launch();
  ptx::grid_wait();
  const int64_t row = blockIdx.x;
  const T* const x = static_cast<const T*>(p.x) + row * p.x_stride;
  float values[kVecs][kFp8Lane] = {};
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int at = static_cast<int>(threadIdx.x + i * blockDim.x) * kFp8Lane;
    if (at < p.width) load_floats(x + at, values[i]);
  }
  store_fp8_row(values, p.fp8, p.out, row, p.width, scratch);
}

template <typename T>
cudaError_t launch_quantize(const QuantizeParams& p, cudaStream_t stream) {
  const int vectors = p.width / kFp8Lane;
  int per_thread = p.num_rows > 4 * num_sms() ? 2 : 1;
  while (div_up(vectors, per_thread) > kMaxThreads) per_thread *= 2;
  const int threads = round_up(div_up(vectors, per_thread), kWarpSize);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(p.num_rows)),
                          .block = dim3(static_cast<unsigned>(threads)),
                          .pdl = p.pdl};
  if (per_thread == 1) return launch(quantize_kernel<T, 1>, shape, stream, p);
  if (per_thread == 2) return launch(quantize_kernel<T, 2>, shape, stream, p);
  return launch(quantize_kernel<T, 4>, shape, stream, p);
}

}  // namespace

cudaError_t quantize(const QuantizeParams& p, cudaStream_t stream) {
  if (p.num_rows == 0 || p.width == 0) return cudaSuccess;
  if (p.width % kFp8Lane != 0 || p.width > kMaxQuantizeWidth || !p.fp8.is_set())
    return cudaErrorInvalidValue;
  if (p.fp8.grouped && p.width % kFp8Group != 0) return cudaErrorInvalidValue;
  SRT_DISPATCH_DTYPE(p.dtype, T, { return launch_quantize<T>(p, stream); });
}

}  // namespace srt::cuda
