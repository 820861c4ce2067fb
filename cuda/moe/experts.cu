// The launches of a mixture's MLPs, and the sum over each token's experts.
#include "common/vec.cuh"
#include "moe/gemm.cuh"

namespace srt::cuda {
namespace {

constexpr int kLane = 8;
constexpr int kThreads = 128;

// out = sum of weight * row over a token's choices, plus the gated shared expert; in float.
//
// Parallel  8 values a thread.
// Bound     HBM: choices * hidden * 2 bytes read.
template <typename T>
__global__ void __launch_bounds__(kThreads) sum_kernel(const __grid_constant__ ExpertsParams p) {
  ptx::grid_launch();
  ptx::grid_wait();
  const int vectors = p.shape.hidden / kLane;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t token = item / vectors;
  if (token >= p.shape.num_tokens) return;
  const int at = static_cast<int>(item % vectors) * kLane;
  const moe::Plan plan(p.plan, p.shape);
  float sum[kLane] = {};
  float x[kLane];
  for (int k = 0; k < p.shape.top_k; ++k) {
    const int64_t choice = token * p.shape.top_k + k;
    const float weight = p.weights[choice];
    const int64_t row = plan.place[choice];
    load_floats(static_cast<const T*>(p.rows) + row * p.shape.hidden + at, x);
#pragma unroll
    for (int i = 0; i < kLane; ++i) sum[i] = fmaf(weight, x[i], sum[i]);
  }
  if (p.shared != nullptr) {
    float gate = 1.0f;
    if (p.shared_gate != nullptr)
      gate = 1.0f / (1.0f + __expf(-to_float(static_cast<const T*>(p.shared_gate)[token])));
    load_floats(static_cast<const T*>(p.shared) + token * p.shape.hidden + at, x);
#pragma unroll
    for (int i = 0; i < kLane; ++i) sum[i] = fmaf(gate, x[i], sum[i]);
  }
  store_floats(static_cast<T*>(p.out) + token * p.shape.hidden + at, sum);
}

cudaError_t launch_gemms(const ExpertsParams& p, cudaStream_t stream) {
  const bool is_bf16 = p.dtype == Dtype::kBF16;
  const bool is_fp8 = p.gate_up_scales != nullptr;
  const auto gemm = is_bf16 ? (is_fp8 ? moe::gemm_bf16_fp8 : moe::gemm_bf16)
                            : (is_fp8 ? moe::gemm_f16_fp8 : moe::gemm_f16);
  moe::GemmArgs up{};
  up.x = p.x;
  up.w = p.gate_up;
  up.w_scales = p.gate_up_scales;
  up.scale_columns = p.in_blocks ? div_up(p.shape.hidden, kMoeScaleGroup) : 1;
  up.y = p.narrow;
  up.plan = p.plan;
  up.shape = p.shape;
  up.x_stride = p.x_stride;
  up.in = p.shape.hidden;
  up.out = p.shape.size;
  up.row_step = p.shape.top_k;
  up.act = p.act;
  const cudaError_t first = gemm(up, true, p.pdl, stream);
  if (first != cudaSuccess) return first;
  moe::GemmArgs down = up;
  down.x = p.narrow;
  down.w = p.down;
  down.w_scales = p.down_scales;
  down.scale_columns = p.in_blocks ? div_up(p.shape.size, kMoeScaleGroup) : 1;
  down.y = p.rows;
  down.x_stride = p.shape.size;
  down.in = p.shape.size;
  down.out = p.shape.hidden;
  down.row_step = 0;
  return gemm(down, false, p.pdl, stream);
}

template <typename T>
cudaError_t launch_sum(const ExpertsParams& p, cudaStream_t stream) {
  const int64_t items = static_cast<int64_t>(p.shape.num_tokens) * (p.shape.hidden / kLane);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(div_up(items, static_cast<int64_t>(kThreads)))),
      .block = dim3(kThreads),
      .pdl = p.pdl};
  return launch(sum_kernel<T>, shape, stream, p);
}

}  // namespace

cudaError_t moe_experts(const ExpertsParams& p, cudaStream_t stream) {
  if (p.shape.num_tokens == 0) return cudaSuccess;
  if (p.shape.num_experts > kMaxExperts || p.dtype == Dtype::kF32) return cudaErrorInvalidValue;
  if (const cudaError_t e = moe::make_plan(p, stream); e != cudaSuccess) return e;
  if (const cudaError_t e = launch_gemms(p, stream); e != cudaSuccess) return e;
  return p.dtype == Dtype::kBF16 ? launch_sum<__nv_bfloat16>(p, stream)
                                 : launch_sum<__half>(p, stream);
}

}  // namespace srt::cuda
