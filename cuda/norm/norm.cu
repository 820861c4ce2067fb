// RMSNorm and LayerNorm over rows, with the residual add before and the fp8 quantization after.
//
// Shapes    see NormParams; every row starts at a multiple of 16 bytes; hidden % 8 == 0.
// Parallel  few or long rows: one block a row, 8 to 32 values a thread; many short rows: a warp
// each. Bound     HBM: num_rows * hidden * (2 to 4 accesses); every value is read once and kept in
// registers. Numerics  sums in float32 in a fixed order; the residual sum is rounded to dtype
// before the norm.
#include "common/fp8_rows.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "norm/norm.h"

namespace srt::cuda {
namespace {

constexpr int kLane = 8;  // values of one vector
constexpr int kMaxThreads = 1024;
constexpr int kRowsPerBlock = 4;  // short rows of a warp each

// Four vectors a thread are for warps that hold a whole short row: more registers, fewer threads.
template <int kVecs>
constexpr int kBlockLimit = kVecs == 4 ? kRowsPerBlock * kWarpSize : kMaxThreads;

__device__ __forceinline__ int64_t row_offset(const RowLayout& rows, int row) {
  return row / rows.inner * rows.outer_stride + row % rows.inner * rows.inner_stride;
}

// This thread's part of a row: vectors threadIdx.x, threadIdx.x + blockDim.x, ...
template <int kVecs, typename F>
__device__ __forceinline__ void for_vectors(int hidden, F&& f) {
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int at = static_cast<int>(threadIdx.x + i * blockDim.x) * kLane;
    if (at < hidden) f(i, at);
  }
}

// values += the residual, which takes the rounded sum.
template <typename T, int kVecs>
__device__ __forceinline__ void add_residual(float (&values)[kVecs][kLane], T* residual,
                                             int hidden) {
  Vec<T, kLane> before[kVecs];  // all loads first: a store might alias the next one
  for_vectors<kVecs>(hidden, [&](int i, int at) { before[i] = load_vec<kLane>(residual + at); });
  for_vectors<kVecs>(hidden, [&](int i, int at) {
#pragma unroll
    for (int j = 0; j < kLane; ++j)
      values[i][j] = rounded<T>(values[i][j] + to_float(before[i][j]));
    store_floats(residual + at, values[i]);
  });
}

// Centres the values where asked; returns 1 / their root mean square.
template <int kVecs>
__device__ __forceinline__ float normalize(float (&values)[kVecs][kLane], const NormParams& p,
                                           float* scratch) {
  const float count = static_cast<float>(p.hidden);
  if (p.centered) {
    float sum = 0.0f;
    for_vectors<kVecs>(p.hidden, [&](int i, int) {
#pragma unroll
      for (int j = 0; j < kLane; ++j) sum += values[i][j];
    });
    const float mean = block_reduce(sum, 0.0f, Add{}, scratch) / count;
    for_vectors<kVecs>(p.hidden, [&](int i, int) {
#pragma unroll
      for (int j = 0; j < kLane; ++j) values[i][j] -= mean;
    });
  }
  float squares = 0.0f;
  for_vectors<kVecs>(p.hidden, [&](int i, int) {
#pragma unroll
    for (int j = 0; j < kLane; ++j) squares += values[i][j] * values[i][j];
  });
  return rsqrtf(block_reduce(squares, 0.0f, Add{}, scratch + kWarpSize) / count + p.eps);
}

template <typename T, int kVecs>
__device__ __forceinline__ void apply_weight(float (&values)[kVecs][kLane],
                                             const Vec<T, kLane> (&weight)[kVecs], float scale,
                                             const NormParams& p) {
  const T* const bias = static_cast<const T*>(p.bias);
  const bool round_first = !p.centered && p.weight_offset == 0.0f;
  for_vectors<kVecs>(p.hidden, [&](int i, int at) {
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      const float x = values[i][j] * scale;
      const float w = to_float(weight[i][j]) + p.weight_offset;
      values[i][j] = (round_first ? rounded<T>(x) : x) * w;
    }
    if (bias == nullptr) return;
    float b[kLane];
    load_floats(bias + at, b);
#pragma unroll
    for (int j = 0; j < kLane; ++j) values[i][j] += b[j];
  });
}

template <typename T, int kVecs>
__global__ void __launch_bounds__(kBlockLimit<kVecs>)
    norm_kernel(const __grid_constant__ NormParams p) {
  __shared__ float scratch[3][kWarpSize];
  ptx::grid_launch();
  const int row = static_cast<int>(blockIdx.x * blockDim.y + threadIdx.y);
  Vec<T, kLane> weight[kVecs];
  for_vectors<kVecs>(p.hidden, [&](int i, int at) {
    weight[i] = load_vec<kLane>(static_cast<const T*>(p.weight) + at);
  });
  ptx::grid_wait();
  if (row >= p.num_rows) return;  // rows share a block only where each has a warp of its own

  const T* const x = static_cast<const T*>(p.x) + row_offset(p.x_rows, row);
  float values[kVecs][kLane] = {};
  for_vectors<kVecs>(p.hidden, [&](int i, int at) { load_floats(x + at, values[i]); });
  if (p.residual != nullptr) {
    T* const residual = static_cast<T*>(p.residual) + static_cast<int64_t>(row) * p.hidden;
    add_residual(values, residual, p.hidden);
  }
  const float scale = normalize(values, p, scratch[0]);
  apply_weight(values, weight, scale, p);
  if (p.fp8.is_set()) {
    for_vectors<kVecs>(p.hidden, [&](int i, int) {
#pragma unroll
      for (int j = 0; j < kLane; ++j) values[i][j] = rounded<T>(values[i][j]);
    });
    store_fp8_row(values, p.fp8, static_cast<uint8_t*>(p.out), row, p.hidden, scratch[2]);
    return;
  }
  T* const out = static_cast<T*>(p.out) + row_offset(p.out_rows, row);
  for_vectors<kVecs>(p.hidden, [&](int i, int at) { store_floats(out + at, values[i]); });
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
  if (p.hidden % kLane != 0 || p.hidden > kMaxNormHidden) return cudaErrorInvalidValue;
  if (p.fp8.grouped && p.hidden % kFp8Group != 0) return cudaErrorInvalidValue;
  const int vectors = p.hidden / kLane;
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
