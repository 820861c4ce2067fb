// The decode step of few rows as one persistent kernel: all layers, one CTA a multiprocessor.
//
// Shapes    see DecodeStepParams and decode_step_fits; up to 8 rows.
// Parallel  two producer warps stream this CTA's share of every weight and of the KV through one
//           ring of shared memory; eight consumer warps multiply. Five phases a layer: qkv,
//           attention, o, gate and up, down. Between phases only the consumers wait, and only for
//           the values that they read (sync.cuh); a janitor warp empties the places of values to
//           come.
// Bound     HBM: weights and visible KV once; with small layers the chain of phases.
// Numerics  activations round to bf16 where the unfused operations round them, but for the norm:
//           x * weight rounds, and the row's scale multiplies the product in float32. Sums have a
//           fixed order: the same bits on every run.
#pragma once

#include "decode_step/attend.cuh"
#include "decode_step/launch.cuh"
#include "decode_step/producer.cuh"
#include "decode_step/product.cuh"

namespace srt::cuda::decode_step {

template <typename L>
struct SharedMemory {
  uint8_t stages[L::kStages * kStageBytes];
  uint8_t reduction[L::kReduceBytes];
  Barriers<L::kStages> barriers;
  Splits splits;
  DecodeStepLayer layers[kMaxLayers];
};

// Barriers between the consumers and the janitor.
constexpr int kLayerBegins = 2;
constexpr int kCopyIsEmpty = 3;
constexpr int kWithJanitor = kConsumers + 32;

template <typename L>
__device__ void consume(Ring<L::kStages> ring, const Args& a, const Splits& splits,
                        const DecodeStepLayer* layers, uint8_t* smem) {
  ptx::grid_wait();  // x comes from the previous kernel
  for (int i = 0; i < a.p.shape.num_layers; ++i) {
    const DecodeStepLayer& layer = layers[i];
    Deal deal;
    hopper::named_barrier(kLayerBegins, kWithJanitor);
#pragma unroll 1
    for (int n = 0; n < kNumPhases; ++n) {
      const auto phase = static_cast<Phase>(n);
      const int copy = (splits.turn + i) % kCopies;
      if (phase == kDown) hopper::named_barrier(kCopyIsEmpty, kWithJanitor);
      if (phase == kAttend) {
        const Share share = deal.deal(splits.first[a.p.num_rows]);
        run_attention<L>(ring, a, splits, layer, share, copy, smem);
      } else {
        const auto kind = static_cast<Phase>(opaque(n));
        const Product product = product_of(a.p.shape, layer, kind);
        const Route route = route_of(a, layer, kind, copy, i);
        run_product<L>(ring, a, product, deal.deal(product.units()), route, smem);
      }
    }
  }
}

// Empties units of 8 columns of y in all rows: from `first` on, `step` apart.
__device__ __forceinline__ void empty_columns(bf16* y, int columns, int first, int step, int lane) {
#pragma unroll 1
  for (int i = lane;; i += 32) {
    const int at = (first + i / kRows * step) * kTileRows;
    if (at >= columns) return;
    publish(y + i % kRows * columns + at, uint4{kEmpty, kEmpty, kEmpty, kEmpty});
  }
}

// The janitor warp empties the copy that the next layer will write, while this layer is computed.
// What stood there belongs to the layer before the last: this CTA's consumers have had input from
// all of the last layer, so everybody has read it.
__device__ __forceinline__ void empty_copies(const Args& a, const Splits& splits) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const DecodeStepShape& s = a.p.shape;
  const int q = s.num_q_heads * s.head_dim;
  const int wide = q + 2 * s.num_kv_heads * s.head_dim;
#pragma unroll 1
  for (int i = 0; i < s.num_layers; ++i) {
    const int rows = (splits.turn + i + 1) % kCopies * kRows;
    hopper::named_barrier(kLayerBegins, kWithJanitor);
    Deal deal;
    const auto empty = [&](bf16* y, int columns) {
      const Share share = deal.deal(columns / kTileRows);
      if (share.any())
        empty_columns(y + rows * columns, columns, share.first, static_cast<int>(gridDim.x), lane);
      return share;
    };
    empty(a.qkv, wide);
    deal.deal(splits.first[a.p.num_rows]);
    empty(a.mid, s.hidden);
    const Share gated = empty(a.act, s.intermediate);
    empty(a.out, s.hidden);
    if (gated.any()) {  // those who take part in every layer
      const int step = min(gated.total, static_cast<int>(gridDim.x));
      empty_columns(a.attn + rows * q, q, gated.first, step, lane);
    }
    __threadfence();  // emptied for all, before this CTA's consumers write anything later
    hopper::named_barrier(kCopyIsEmpty, kWithJanitor);
  }
}

// The last CTA to end hands over to the next launch.
__device__ __forceinline__ void end(const Args& a) {
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(a.ended, 1u) + 1 != gridDim.x) return;
  *a.ended = 0;
  *a.turn = (*a.turn + static_cast<unsigned>(a.p.shape.num_layers)) % kCopies;
}

template <typename L>
__global__ void __launch_bounds__(kThreads, 1) decode_step_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) uint8_t raw[];
  auto& smem = *reinterpret_cast<SharedMemory<L>*>(raw);
  const Ring<L::kStages> ring{ptx::smem_address(smem.stages), ptx::smem_address(smem.barriers.full),
                              ptx::smem_address(smem.barriers.empty)};
  if (threadIdx.x == kConsumers) {
    for (int s = 0; s < L::kStages; ++s) {
      hopper::barrier_init(ring.full + 8 * s, kProducers * 32);
      hopper::barrier_init(ring.empty + 8 * s, kWarps * 32);
    }
    hopper::fence_barrier_init();
  }
  for (int i = static_cast<int>(threadIdx.x) * 16; i < L::kStages * kStageBytes; i += kThreads * 16)
    ptx::store_shared_16(ring.stages + i, uint4{});  // see take_stage
  hopper::fence_async_proxy();
  if (threadIdx.x < 32) plan_splits(a, smem.splits);
  const auto* const addresses = reinterpret_cast<const uint64_t*>(a.p.layers);
  for (int i = static_cast<int>(threadIdx.x); i < a.p.shape.num_layers * kDecodeStepLayerWords;
       i += kThreads)
    reinterpret_cast<uint64_t*>(smem.layers)[i] = addresses[i];
  __syncthreads();
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  if (warp >= kWarps) {
    hopper::lower_registers<kProducerRegisters>();
    if (warp < kWarps + kProducers) {
      produce<L>(ring, a, smem.splits, smem.layers);
      ptx::grid_launch();  // everything is on its way: the next kernel may settle
    } else if (warp == kWarps + kProducers) {
      empty_copies(a, smem.splits);
    }
  } else {
    hopper::raise_registers<kConsumerRegisters>();
    consume<L>(ring, a, smem.splits, smem.layers, smem.reduction);
    end(a);
  }
}

template <typename L>
cudaError_t launch_decode_step(const Args& a, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(num_sms()));
  shape.block = dim3(kThreads);
  shape.smem_bytes = sizeof(SharedMemory<L>);
  static_assert(sizeof(SharedMemory<L>) <= kSmemBytes);
  shape.pdl = a.p.pdl;
  return launch(decode_step_kernel<L>, shape, stream, a);
}

}  // namespace srt::cuda::decode_step
