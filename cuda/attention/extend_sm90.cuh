// Paged extend attention for Hopper: producer warps feed tiles by TMA, two
// warpgroups multiply with wgmma and take turns, so that one's softmax runs
// under the other's products.
//
// Shapes    see ExtendParams; page size >= 8, group <= kExtendTileRows.
// Parallel  persistent blocks, one a multiprocessor; an item is a tile of 128
// query rows under one
//           KV head. A tile's rows are whole tokens times the query heads of
//           the KV head: one TMA box of q.
// Bound     tensor cores: 2 * (head_dim + head_dim_v) * visible (query, key)
// pairs * num_q_heads. Numerics  scores and output accumulate in float; P is
// rounded to T for the second product.
//
// After FlashAttention-3 (Shah et al., 2024): warp specialisation, ping-pong,
// and within a warpgroup the scores of tile n - 1 beside the output of tile n.
#pragma once

#include <algorithm>

#include "attention/extend_sm90_consumer.cuh"
#include "attention/extend_sm90_producer.cuh"
#include "attention/extend_sm90_widen.cuh"
#include "common/tensor_map.h"

namespace srt::cuda {

template <typename T, typename Layout>
__global__ void __launch_bounds__(Layout::kThreads, 1)
    extend_sm90_kernel(const __grid_constant__ ExtendSm90Params params) {
  extern __shared__ unsigned char smem[];
  const Layout layout{.smem = (ptx::smem_address(smem) + 1023u) & ~1023u};
  if (threadIdx.x == 0) layout.init_barriers();
  __syncthreads();  // the barriers stand
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  if (warp < 4) {
    hopper::lower_registers<Layout::kProducerRegisters>();
    if constexpr (Layout::kFp8) {
      const ExtendWidener<T, Layout> widener{{.params = params, .smem = layout}};
      if (warp < 2) {
        widener.template produce<true>();
      } else {
        widener.template produce<false>();
      }
    } else {
      const ExtendProducer<Layout> producer{.params = params, .smem = layout};
      if (warp == 0) producer.produce_queries_and_keys();
      if (warp == 1) producer.produce_values();
    }
  } else {
    hopper::raise_registers<Layout::kConsumerRegisters>();
    ExtendConsumer<T, Layout>{.p = params.p, .smem = layout, .warpgroup = warp / 4 - 1}.run();
  }
}

// Tensor maps are made per launch: a microsecond of host time, and nothing to
// keep or invalidate.
template <typename T, typename Layout>
cudaError_t launch_extend_sm90(const ExtendParams& p, cudaStream_t stream) {
  const int group = p.num_q_heads / p.kv.num_kv_heads;
  const int tile_tokens = extend_tile_tokens(group);
  const uint64_t page_size = uint64_t{1} << p.kv.log2_page_size;
  const auto box_slots =
      static_cast<uint32_t>(page_size < Layout::kKeys ? page_size : Layout::kKeys);
  const auto kv_heads = static_cast<uint64_t>(p.kv.num_kv_heads);
  ExtendSm90Params params{};
  params.p = p;
  const uint64_t run_pages = std::max<uint64_t>(1, kRunKeys / page_size);
  const auto make_pool_maps = [&](const void* data, uint64_t dim, ExtendPoolMaps* out) {
    TensorMap map{.data = data,
                  .dtype = p.dtype,
                  .is_bytes = Layout::kFp8,
                  .ndim = 4,
                  .dims = {dim, page_size, kv_heads, static_cast<uint64_t>(p.kv.num_pages)},
                  .strides = {1, dim, page_size * dim, kv_heads * page_size * dim},
                  .box = {Layout::kFp8 ? static_cast<uint32_t>(dim) : 64, box_slots, 1, 1}};
    const cudaError_t e = make_tensor_map(map, &out->page);
    map.box[3] = static_cast<uint32_t>(run_pages);
    return e != cudaSuccess ? e : make_tensor_map(map, &out->run);
  };
  const TensorMap q{.data = p.q,
                    .dtype = p.dtype,
                    .is_bytes = false,
                    .ndim = 3,
                    .dims = {Layout::kDimQk, static_cast<uint64_t>(p.num_q_heads),
                             static_cast<uint64_t>(p.num_tokens)},
                    .strides = {1, Layout::kDimQk, static_cast<uint64_t>(p.q_token_stride)},
                    .box = {64, static_cast<uint32_t>(group), static_cast<uint32_t>(tile_tokens)}};
  if (const cudaError_t e = make_tensor_map(q, &params.q)) return e;
  if (const cudaError_t e = make_pool_maps(p.kv.k, Layout::kDimQk, &params.k)) return e;
  if (const cudaError_t e = make_pool_maps(p.kv.v, Layout::kDimV, &params.v)) return e;
  const int64_t items =
      extend_max_items(p.num_tokens, p.num_seqs, p.num_q_heads, p.kv.num_kv_heads);
  const auto blocks = std::min<int64_t>(items, num_sms());
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(blocks)),
                          .block = dim3(Layout::kThreads),
                          .smem_bytes = Layout::kSmemBytes};
  return launch(&extend_sm90_kernel<T, Layout>, shape, stream, params);
}

// Both dtypes of one head size.
template <int kDimQk, int kDimV, bool kFp8>
cudaError_t dispatch_extend_sm90(const ExtendParams& p, cudaStream_t stream) {
  using Layout = ExtendSm90<kDimQk, kDimV, kFp8>;
  if (p.dtype == Dtype::kBF16) return launch_extend_sm90<__nv_bfloat16, Layout>(p, stream);
  if (p.dtype == Dtype::kF16) return launch_extend_sm90<__half, Layout>(p, stream);
  return cudaErrorInvalidValue;
}

cudaError_t extend_sm90_d64(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_sm90_d80(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_sm90_d96(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_sm90_d128(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_sm90_d192(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_sm90_d256(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_sm90_d64_fp8(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_sm90_d128_fp8(const ExtendParams& p, cudaStream_t stream);

}  // namespace srt::cuda
