// Sorts the choices by expert and cuts each expert's rows into tiles, on the device.
//
// Shapes    at most kMaxExperts experts.
// Parallel  one block: a counting sort, and one thread an expert for its tiles.
// Bound     latency: 4 bytes a choice, read twice.
#include "common/ptx.cuh"
#include "moe/plan.cuh"

namespace srt::cuda::moe {
namespace {

constexpr int kThreads = kMaxExperts;

// Inclusive scan of `x` over the block; `sums` holds a word a warp.
__device__ __forceinline__ int inclusive_scan(int x, int (&sums)[kThreads / 32]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, x, offset);
    if (lane >= offset) x += below;
  }
  __syncthreads();  // the sums of an earlier scan have been read
  if (lane == 31) sums[warp] = x;
  __syncthreads();  // all warps' sums stand
  for (int w = 0; w < warp; ++w) x += sums[w];
  return x;
}

// Within an expert the order of rows is left to chance: a row's numbers do not depend on it.
__global__ void __launch_bounds__(kThreads)
    plan_kernel(const MoeShape shape, int tile_rows, const int32_t* experts, int32_t* words) {
  __shared__ int counts[kMaxExperts];
  __shared__ int sums[kThreads / 32];
  const Plan plan(words, shape);
  const int t = static_cast<int>(threadIdx.x);
  counts[t] = 0;
  ptx::grid_launch();
  ptx::grid_wait();
  __syncthreads();  // counts are zero
  for (int i = t; i < shape.choices(); i += kThreads) atomicAdd(&counts[experts[i]], 1);
  __syncthreads();  // counts stand
  const int count = counts[t];
  const int end = inclusive_scan(count, sums);
  const int tiles = div_up(count, tile_rows);
  const int last_tile = inclusive_scan(tiles, sums);
  auto* records = reinterpret_cast<int4*>(plan.header + kMoePlanHeader);
  for (int i = 0; i < tiles; ++i)
    records[last_tile - tiles + i] =
        make_int4(t, end - count + i * tile_rows, min(tile_rows, count - i * tile_rows), 0);
  if (t == kThreads - 1) plan.header[0] = last_tile;
  counts[t] = end - count;
  __syncthreads();  // where each expert's rows begin
  for (int i = t; i < shape.choices(); i += kThreads) {
    const int row = atomicAdd(&counts[experts[i]], 1);
    plan.place[i] = row;
    plan.choice[row] = i;
  }
}

}  // namespace

cudaError_t make_plan(const ExpertsParams& p, cudaStream_t stream) {
  const LaunchShape shape{.grid = dim3(1), .block = dim3(kThreads), .pdl = p.pdl};
  return launch(plan_kernel, shape, stream, p.shape, p.shape.tile_rows(), p.experts, p.plan);
}

}  // namespace srt::cuda::moe
