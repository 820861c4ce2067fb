// The store of one tensor (K, V, or MLA's latent) into its pool slots.
//
// Shapes    see StoreKvParams; heads 16-byte aligned.
// Parallel  8 values a thread.
// Bound     HBM: num_tokens * num_heads * head_dim * (read + written).
// Numerics  a copy; to fp8: round to nearest even of x / scale, saturating, NaN stays NaN.
#include "common/ptx.cuh"
#include "kv/pool.cuh"
#include "kv/store_kv.h"

namespace srt::cuda {
namespace {

constexpr int kLane = 8;
constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    store_kv_kernel(const __grid_constant__ StoreKvParams p, int64_t num_items) {
  ptx::grid_launch();
  ptx::grid_wait();
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= num_items) return;
  const int vectors = p.head_dim / kLane;
  const int at = static_cast<int>(item % vectors) * kLane;
  const int head = static_cast<int>(item / vectors % p.num_heads);
  const int64_t token = item / vectors / p.num_heads;
  float x[kLane];
  load_floats(
      static_cast<const T*>(p.x.data) + token * p.x.token_stride + head * p.x.head_stride + at, x);
  const int64_t offset = pool_offset(p.slots[token], head, p.num_heads, p.page_size, p.head_dim);
  store_pool<T>(p.cache, offset + at, p.format, p.scale, x);
}

}  // namespace

cudaError_t store_kv(const StoreKvParams& p, cudaStream_t stream) {
  if (p.num_tokens == 0) return cudaSuccess;
  if (p.head_dim % kLane != 0) return cudaErrorInvalidValue;
  const int64_t num_items = static_cast<int64_t>(p.num_tokens) * p.num_heads * (p.head_dim / kLane);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(div_up(num_items, static_cast<int64_t>(kThreads)))),
      .block = dim3(kThreads),
      .pdl = p.pdl};
  SRT_DISPATCH_DTYPE(p.dtype, T,
                     { return launch(store_kv_kernel<T>, shape, stream, p, num_items); });
}

}  // namespace srt::cuda
