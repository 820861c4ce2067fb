// Gated activations and the logits softcap.
//
// Shapes    see the params structs; rows 16-byte aligned, width % 8 == 0.
// Parallel  plain output: 8 values a thread; fp8 output: a block a row, which stays in registers.
// Bound     HBM: num_rows * width * (2 values read + 1 written).
// Numerics  float32 inside, one rounding at the end.
#include "act/act.h"
#include "common/fp8_rows.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace srt::cuda {
namespace {

constexpr int kLane = 8;
constexpr int kThreads = 256;
constexpr int kMaxRowThreads = 1024;

template <Activation kActivation>
__device__ __forceinline__ float activate(float x) {
  if constexpr (kActivation == Activation::kSilu) {
    return __fdividef(x, 1.0f + __expf(-x));
  } else if constexpr (kActivation == Activation::kGeluErf) {
    return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
  } else {
    const float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
  }
}

template <typename T, Activation kActivation>
__device__ __forceinline__ void gate(const T* row, int width, int at, float (&y)[kLane]) {
  const Vec<T, kLane> gates = load_vec_stream<kLane>(row + at);
  const Vec<T, kLane> ups = load_vec_stream<kLane>(row + width + at);
#pragma unroll
  for (int j = 0; j < kLane; ++j)
    y[j] = activate<kActivation>(to_float(gates[j])) * to_float(ups[j]);
}

template <typename T, Activation kActivation>
__global__ void __launch_bounds__(kThreads)
    act_and_mul_kernel(const __grid_constant__ ActAndMulParams p, int blocks_per_row) {
  ptx::grid_launch();
  const int64_t row = static_cast<int>(blockIdx.x) / blocks_per_row;
  const int block = static_cast<int>(blockIdx.x) % blocks_per_row;
  const int at = (block * kThreads + static_cast<int>(threadIdx.x)) * kLane;
  ptx::grid_wait();
  if (at >= p.width) return;
  float y[kLane];
  gate<T, kActivation>(static_cast<const T*>(p.x) + row * p.x_stride, p.width, at, y);
  store_floats(static_cast<T*>(p.out) + row * p.width + at, y);
}

template <typename T, Activation kActivation, int kVecs>
__global__ void __launch_bounds__(kMaxRowThreads)
    act_and_mul_fp8_kernel(const __grid_constant__ ActAndMulParams p) {
  __shared__ float scratch[kWarpSize];
  ptx::grid_launch();
  ptx::grid_wait();
  const int64_t row = blockIdx.x;
  const T* const x = static_cast<const T*>(p.x) + row * p.x_stride;
  float values[kVecs][kLane] = {};
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int at = static_cast<int>(threadIdx.x + i * blockDim.x) * kLane;
    if (at >= p.width) continue;
    gate<T, kActivation>(x, p.width, at, values[i]);
#pragma unroll
    for (int j = 0; j < kLane; ++j) values[i][j] = rounded<T>(values[i][j]);
  }
  store_fp8_row(values, p.fp8, static_cast<uint8_t*>(p.out), row, p.width, scratch);
}

template <typename T, Activation kActivation>
cudaError_t launch_act_fp8(const ActAndMulParams& p, cudaStream_t stream) {
  if (p.width > kMaxFp8Width || (p.fp8.grouped && p.width % kFp8Group != 0))
    return cudaErrorInvalidValue;
  const int vectors = p.width / kLane;
  int per_thread = 1;
  while (div_up(vectors, per_thread) > kMaxRowThreads) per_thread *= 2;
  const int threads = round_up(div_up(vectors, per_thread), kWarpSize);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(p.num_rows)),
                          .block = dim3(static_cast<unsigned>(threads)),
                          .pdl = p.pdl};
  if (per_thread == 1) return launch(act_and_mul_fp8_kernel<T, kActivation, 1>, shape, stream, p);
  if (per_thread == 2) return launch(act_and_mul_fp8_kernel<T, kActivation, 2>, shape, stream, p);
  return launch(act_and_mul_fp8_kernel<T, kActivation, 4>, shape, stream, p);
}

template <typename T, Activation kActivation>
cudaError_t launch_act(const ActAndMulParams& p, cudaStream_t stream) {
  if (p.fp8.is_set()) return launch_act_fp8<T, kActivation>(p, stream);
  const int blocks_per_row = div_up(p.width / kLane, kThreads);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(p.num_rows * blocks_per_row)),
                          .block = dim3(kThreads),
                          .pdl = p.pdl};
  return launch(act_and_mul_kernel<T, kActivation>, shape, stream, p, blocks_per_row);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    softcap_kernel(const __grid_constant__ SoftcapParams p) {
  ptx::grid_launch();
  ptx::grid_wait();
  const float inverse = 1.0f / p.cap;
  T* const x = static_cast<T*>(p.x);
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kLane;
  if (at + kLane <= p.count) {
    float y[kLane];
    load_floats(x + at, y);
#pragma unroll
    for (int j = 0; j < kLane; ++j) y[j] = p.cap * tanhf(y[j] * inverse);
    store_floats(x + at, y);
    return;
  }
  for (int64_t i = at; i < p.count; ++i)
    x[i] = from_float<T>(p.cap * tanhf(to_float(x[i]) * inverse));
}

}  // namespace

cudaError_t act_and_mul(const ActAndMulParams& p, cudaStream_t stream) {
  if (p.num_rows == 0 || p.width == 0) return cudaSuccess;
  if (p.width % kLane != 0) return cudaErrorInvalidValue;
  SRT_DISPATCH_DTYPE(p.dtype, T, {
    switch (p.activation) {
      case Activation::kSilu:
        return launch_act<T, Activation::kSilu>(p, stream);
      case Activation::kGeluErf:
        return launch_act<T, Activation::kGeluErf>(p, stream);
      case Activation::kGeluTanh:
        return launch_act<T, Activation::kGeluTanh>(p, stream);
    }
    return cudaErrorInvalidValue;
  });
}

cudaError_t softcap(const SoftcapParams& p, cudaStream_t stream) {
  if (p.count == 0) return cudaSuccess;
  const auto blocks = div_up(p.count, static_cast<int64_t>(kThreads) * kLane);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads), .pdl = p.pdl};
  SRT_DISPATCH_DTYPE(p.dtype, T, { return launch(softcap_kernel<T>, shape, stream, p); });
}

}  // namespace srt::cuda
