// The producer warps: weights and KV of all phases and layers, in the order of their use.
//
// Weights and older KV are written by no CTA of this launch, so nothing but the ring holds the
// producers back: they run ahead across phases and layers. Rows of weights come by bulk copies, all
// from the first warp; of KV, whose tokens are scattered, each warp copies its share.
#pragma once

#include "common/mma.cuh"
#include "decode_step/sync.cuh"

namespace srt::cuda::decode_step {

// `bytes` of global memory into shared memory; `bar` counts them.
__device__ __forceinline__ void copy_bulk(uint32_t smem, const void* gmem, uint32_t bytes,
                                          uint32_t bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(smem),
      "l"(gmem), "r"(bytes), "r"(bar), "l"(hopper::kEvictFirst)
      : "memory");
}

// This thread's arrival, once its copies so far have landed.
__device__ __forceinline__ void arrive_with_copies(uint32_t bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

// Waits until the next stage may be filled: consumers have left it, and of those before it less
// than kInFlight are under way. What is queued beyond that does not come any sooner, and holds up
// the activations that others wait for.
template <int kStages>
__device__ __forceinline__ void wait_for_room(const Ring<kStages>& ring) {
  const bool same_round = ring.at >= kInFlight;
  const int oldest = same_round ? ring.at - kInFlight : ring.at + kStages - kInFlight;
  wait(ring.full + 8 * oldest, same_round ? ring.round : ring.round ^ 1);
  wait(ring.empty_bar(), ring.round ^ 1);
}

template <int kStages>
__device__ __forceinline__ void produce_tile(Ring<kStages>& ring, const bf16* rows, int stride,
                                             int columns, int me) {
  wait_for_room(ring);
  hopper::fence_async_proxy();  // the stage may have held KV, which came by ordinary stores
  const uint32_t bytes = static_cast<uint32_t>(columns) * 2;
  if (me == 0) {
    hopper::barrier_expect_bytes(ring.full_bar(), kTileRows * bytes);
  } else {
    hopper::barrier_arrive(ring.full_bar());
  }
  if (me < kTileRows) {
    copy_bulk(ring.stage() + me * weight_stride(columns), rows + static_cast<int64_t>(me) * stride,
              bytes, ring.full_bar());
  }
  ring.next();
}

template <int kStages>
__device__ __forceinline__ void produce_product(Ring<kStages>& ring, const Product& product,
                                                const Share& share, int rows, int me) {
  const int count = share.count();
  const int step = product.group_units(rows);
  for (int begin = 0; begin < count; begin += step) {
    const int end = min(begin + step, count);
    for (int chunk = 0; chunk < product.chunks(); ++chunk) {
      const int columns = product.columns(chunk);
      const bf16* const w = product.w + chunk * kChunk;
      for (int i = begin; i < end; ++i) {
        const int64_t row = share.unit(i) * kTileRows;
        produce_tile(ring, w + row * product.k, product.k, columns, me);
        if (product.gated)
          produce_tile(ring, w + (row + product.n) * product.k, product.k, columns, me);
      }
    }
  }
}

// Up to kStageTokens tokens from `token` on; hidden ones and the newest, which this step writes,
// become zeros.
template <typename L>
__device__ __forceinline__ void produce_tokens(Ring<L::kStages>& ring, const Args& a,
                                               const Item& item, int len, const void* cache,
                                               int token, int me) {
  constexpr int kStride = kProducers * 32;                 // tokens between those of a warp
  constexpr int kPieces = L::kHeadDim * L::kKvBytes / 16;  // of 16 bytes
  const int lane = me % 32;
  const int own = me - lane;
  const int* const table = a.p.page_table + a.p.rows[item.row] * a.p.page_table_stride;
  const int log2_page = a.p.log2_page_size;
  const auto look_up = [&](int first) {  // where this lane's token of 32 lies, in pieces
    const int at = min(first + lane, len - 1);
    const uint32_t page = static_cast<uint32_t>(__ldg(table + (at >> log2_page)));
    const uint32_t slot = ((page * a.p.shape.num_kv_heads + item.kv_head) << log2_page) +
                          (at & ((1 << log2_page) - 1));
    return slot * kPieces;
  };
  uint32_t next = look_up(token + own);
  wait_for_room(ring);
#pragma unroll 1
  for (int begin = own; begin < L::kStageTokens; begin += kStride) {
    const uint32_t base = next;
    if (begin + kStride < L::kStageTokens) next = look_up(token + begin + kStride);
#pragma unroll 4
    for (int i = 0; i < kPieces; ++i) {
      const int at = i * (32 / kPieces) + lane / kPieces;
      const int piece = lane % kPieces;
      const uint32_t source = __shfl_sync(0xffffffffu, base, at) + piece;
      ptx::cp_async_16(ring.stage() + (begin + at) * L::kKvStride + piece * 16,
                       static_cast<const char*>(cache) + static_cast<uint64_t>(source) * 16,
                       token + begin + at < len - 1);
    }
  }
  arrive_with_copies(ring.full_bar());
  ring.next();
}

template <typename L>
__device__ __forceinline__ void produce_kv(Ring<L::kStages>& ring, const Args& a,
                                           const Splits& splits, const DecodeStepLayer& layer,
                                           const Share& share, int me) {
  for (int i = 0; i < share.count(); ++i) {
    const Item item = item_at(splits, a.p.num_rows, share.unit(i));
    const int len = splits.len[item.row];
    for (int tile = item.begin; tile < item.end; ++tile) {
      for (int s = 0; s < 2 * L::kKvStages; ++s) {
        const void* const cache = s < L::kKvStages ? layer.k_cache : layer.v_cache;
        const int token = tile * kTileTokens + s % L::kKvStages * L::kStageTokens;
        produce_tokens<L>(ring, a, item, len, cache, token, me);
      }
    }
  }
}

template <typename L>
__device__ void produce(Ring<L::kStages> ring, const Args& a, const Splits& splits,
                        const DecodeStepLayer* layers) {
  const int me = static_cast<int>(threadIdx.x) - kConsumers;
  const DecodeStepShape& shape = a.p.shape;
  Deal deal;
#pragma unroll 1
  for (int n = 0; n < shape.num_layers * kNumPhases; ++n) {
    const auto phase = static_cast<Phase>(n % kNumPhases);
    const DecodeStepLayer& layer = layers[n / kNumPhases];
    if (phase == kQkv) deal = Deal{};
    if (phase == kAttend) {
      produce_kv<L>(ring, a, splits, layer, deal.deal(splits.first[a.p.num_rows]), me);
    } else {
      const Product product = product_of(shape, layer, phase);
      produce_product(ring, product, deal.deal(product.units()), a.p.num_rows, me);
    }
  }
}

}  // namespace srt::cuda::decode_step
