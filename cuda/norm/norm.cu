// RMSNorm and LayerNorm over rows, with the residual add before and the fp8 quantization after.
//
// Shapes    see NormParams; every row starts at a multiple of 16 bytes; hidden % 8 == 0.
// Parallel  few or long rows: one block a row, 8 to 32 values a thread; many short rows: a warp
// each. Bound     HBM: num_rows * hidden * (2 to 4 accesses); every value is read once and kept in
// registers. Numerics  sums in float32 in a fixed order; the residual sum is rounded to dtype
// before the norm.
#include "common/ptx.cuh"
#include "norm/norm.h"
#include "norm/norm_row.cuh"

namespace srt::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kRowsPerBlock = 4;  // short rows of a warp each

// Four vectors a thread are for warps that hold a whole short row: more registers, fewer threads.
template <int kVecs>
constexpr int kBlockLimit = kVecs == 4 ? kRowsPerBlock * kWarpSize : kMaxThreads;

template <typename T, int kVecs>
__global__ void __launch_bounds__(kBlockLimit<kVecs>)
    norm_kernel(const __grid_constant__ NormParams p) {
  __shared__ float scratch[3 * kWarpSize];
  ptx::grid_launch();
  const int row = static_cast<int>(blockIdx.x * blockDim.y + threadIdx.y);
  Vec<T, kNormLane> weight[kVecs];
  for_vectors<kVecs>(p.hidden, [&](int i, int at) {
    weight[i] = load_vec<kNormLane>(static_cast<const T*>(p.weight) + at);
  });
  ptx::grid_wait();
  if (row >= p.num_rows) return;  // rows share a block only where each has a warp of its own

  const T* const x = static_cast<const T*>(p.x) + row_offset(p.x_rows, row);
  float values[kVecs][kNormLane] = {};
  for_vectors<kVecs>(p.hidden, [&](int i, int at) { load_floats(x + at, values[i]); });
  if (p.residual != nullptr) {
    T* const residual = static_cast<T*>(p.residual) + static_cast<int64_t>(row) * p.hidden;
    Vec<T, kNormLane> before[kVecs];  // all loads first: a store might alias the next one
    for_vectors<kVecs>(p.hidden,
                       [&](int i, int at) { before[i] = load_vec<kNormLane>(residual + at); });
    add_residual(values, before, residual, p.hidden);
  }
  finish_norm(values, weight, p, row, scratch);
}

template <typename T, int kVecs>
cudaError_t launch_norm(const NormParams& p, int threads, int rows_per_block, cudaStream_t stream) {
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(div_up(p.num_rows, rows_per_block))),
      .block = dim3(static_cast<unsigned>(threads), static_cast<unsigned>(rows_per_block)),
      .pdl = p.pdl};
  return launch(norm_kernel<T, kVecs>, shape, stream, p);
}

}  // namespace

cudaError_t norm(const NormParams& p, cudaStream_t stream) {
  if (p.num_rows == 0) return cudaSuccess;
  if (p.hidden % kNormLane != 0 || p.hidden > kMaxNormHidden) return cudaErrorInvalidValue;
  if (p.fp8.grouped && p.hidden % kFp8Group != 0) return cudaErrorInvalidValue;
  const int vectors = p.hidden / kNormLane;
  const bool many_rows = p.num_rows > 4 * num_sms();
  // Few rows want every load in flight at once; many rows want few barriers.
  int per_thread = many_rows ? 2 : 1;
  if (many_rows && vectors > 2 * kWarpSize && vectors <= 4 * kWarpSize) per_thread = 4;
  while (div_up(vectors, per_thread) > kMaxThreads) per_thread *= 2;
  const int threads = round_up(div_up(vectors, per_thread), kWarpSize);
  const int rows_per_block = many_rows && threads == kWarpSize ? kRowsPerBlock : 1;
  SRT_DISPATCH_DTYPE(p.dtype, T, {
    if (per_thread == 1) return launch_norm<T, 1>(p, threads, rows_per_block, stream);
    if (per_thread == 2) return launch_norm<T, 2>(p, threads, rows_per_block, stream);
    return launch_norm<T, 4>(p, threads, rows_per_block, stream);
  });
}

}  // namespace srt::cuda
