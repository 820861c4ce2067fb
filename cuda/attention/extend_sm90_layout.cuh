// Shared memory, barriers and roles of the Hopper extend kernel, as producers
// and consumers see it.
#pragma once

#include "attention/extend.h"
#include "attention/extend_tile.cuh"
#include "attention/mask.cuh"
#include "common/hopper.cuh"

namespace srt::cuda {

// Keys that one box brings where the pool holds their pages side by side.
constexpr int kRunKeys = 64;

// A pool [pages][heads][slots][dim], in boxes of 64 columns (fp8: all).
struct ExtendPoolMaps {
  CUtensorMap page;  // box: a page or a key tile
  CUtensorMap run;   // box: kRunKeys of neighbouring pages; unused if a page is no shorter
};

struct ExtendSm90Params {
  CUtensorMap q;  // [tokens][heads][dim], box: one tile's tokens, one group, 64 columns
  ExtendPoolMaps k;
  ExtendPoolMaps v;
  ExtendParams p;
};

// A ring of kStages buffers: where it stands and the parity of its current
// round.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <int kDimQk_, int kDimV_, bool kFp8_>
struct ExtendSm90 {
  static constexpr int kDimQk = kDimQk_;
  static constexpr int kDimV = kDimV_;
  static constexpr bool kFp8 = kFp8_;
  static constexpr int kConsumers = 256;  // threads: two warpgroups of 64 rows each
  static constexpr int kThreads = kConsumers + 128;
  static_assert(kExtendTileRows == 64 * kConsumers / 128);
  static constexpr int kKeys = kDimV > 128 ? 64 : 128;  // keys of one tile
  static constexpr int kBlocksQk = div_up(kDimQk, 64);  // blocks of 64 columns: 128-byte rows
  static constexpr int kBlocksV = div_up(kDimV, 64);

  static constexpr int kQBlockBytes = kExtendTileRows * 128;
  static constexpr int kKeyBlockBytes = kKeys * 128;
  static constexpr int kQBytes = kBlocksQk * kQBlockBytes;
  static constexpr int kKBytes = kBlocksQk * kKeyBlockBytes;
  static constexpr int kVBytes = kBlocksV * kKeyBlockBytes;
  // fp8 tiles as they come from the pool, before they are widened into the
  // tiles above.
  static constexpr int kRawKBytes = kFp8 ? kKeys * kDimQk : 0;
  static constexpr int kRawVBytes = kFp8 ? kKeys * kDimV : 0;
  static constexpr int kRawBytes = kRawKBytes + kRawVBytes;

  // Queries move into registers where those suffice: wgmma then reads a third less shared memory
  // for the scores, whose bandwidth they would otherwise share with the copy engine's writes. The
  // next tile's queries may arrive as soon as that has happened.
  static constexpr bool kQueriesInRegisters = !kFp8 && kDimQk <= 128;

  // Where there is room, a third stage, the next tile's queries beside this one's, and two raw
  // tiles.
  static constexpr int kRoom = 225 * 1024;
  static constexpr int kStages =
      kQueriesInRegisters && kQBytes + 3 * (kKBytes + kVBytes) <= kRoom ? 3 : 2;
  static constexpr int kKvBytes = kStages * (kKBytes + kVBytes);
  static constexpr int kQStages =
      !kQueriesInRegisters && 2 * kQBytes + kKvBytes + kRawBytes <= kRoom ? 2 : 1;
  static constexpr int kTileBytes = kQStages * kQBytes + kKvBytes;
  static constexpr int kRawStages = kTileBytes + 2 * kRawBytes <= kRoom ? 2 : 1;
  static constexpr int kBufferBytes = kTileBytes + kRawStages * kRawBytes;
  static constexpr int kNumBarriers = 1 + 2 * kQStages + 4 * kStages + 2 * kRawStages;
  static constexpr int kSmemBytes = kBufferBytes + 8 * kNumBarriers + 1024;  // 1024: to align
  static_assert(kSmemBytes <= 227 * 1024);

  // 504 registers for three threads: those who copy need few, those who
  // multiply many.
  static constexpr int kProducerRegisters = kFp8 ? 72 : 24;
  static constexpr int kConsumerRegisters = kFp8 ? 216 : 240;
  static_assert(kProducerRegisters + 2 * kConsumerRegisters <= 504);

  uint32_t smem;  // 1024-byte aligned

  __device__ __forceinline__ uint32_t q_tile(int stage) const { return smem + stage * kQBytes; }
  __device__ __forceinline__ uint32_t k_tile(int stage) const {
    return smem + kQStages * kQBytes + stage * kKBytes;
  }
  __device__ __forceinline__ uint32_t v_tile(int stage) const {
    return smem + kQStages * kQBytes + kStages * kKBytes + stage * kVBytes;
  }
  __device__ __forceinline__ uint32_t raw_k_tile(int stage) const {
    return smem + kTileBytes + stage * kRawKBytes;
  }
  __device__ __forceinline__ uint32_t raw_v_tile(int stage) const {
    return smem + kTileBytes + kRawStages * kRawKBytes + stage * kRawVBytes;
  }

  // mbarriers: `full` completes when a buffer's bytes have arrived, `empty`
  // when all consumer warps have read it; `v_tail` stands in for v_full where
  // the producer has zeros to add.
  __device__ __forceinline__ uint32_t barrier(int i) const { return smem + kBufferBytes + 8 * i; }
  __device__ __forceinline__ uint32_t v_tail() const { return barrier(0); }
  __device__ __forceinline__ uint32_t q_full(int stage) const { return barrier(1 + stage); }
  __device__ __forceinline__ uint32_t q_empty(int stage) const {
    return barrier(1 + kQStages + stage);
  }
  __device__ __forceinline__ uint32_t kv_barrier(int kind, int stage) const {
    return barrier(1 + 2 * kQStages + kind * kStages + stage);
  }
  __device__ __forceinline__ uint32_t k_full(int stage) const { return kv_barrier(0, stage); }
  __device__ __forceinline__ uint32_t k_empty(int stage) const { return kv_barrier(1, stage); }
  __device__ __forceinline__ uint32_t v_full(int stage) const { return kv_barrier(2, stage); }
  __device__ __forceinline__ uint32_t v_empty(int stage) const { return kv_barrier(3, stage); }
  __device__ __forceinline__ uint32_t raw_k_full(int stage) const { return kv_barrier(4, stage); }
  __device__ __forceinline__ uint32_t raw_v_full(int stage) const {
    return kv_barrier(4, kRawStages + stage);
  }

  __device__ __forceinline__ void init_barriers() const {
    constexpr int kConsumerWarps = kConsumers / 32;
    constexpr int kFills = kFp8 ? 2 : 1;  // a tile is filled by two widening warps, or by TMA
    hopper::barrier_init(v_tail(), 1);
    for (int s = 0; s < kQStages; ++s) {
      hopper::barrier_init(q_full(s), 1);
      hopper::barrier_init(q_empty(s), kConsumerWarps);
    }
    for (int s = 0; s < kStages; ++s) {
      hopper::barrier_init(k_full(s), kFills);
      hopper::barrier_init(v_full(s), kFills);
      hopper::barrier_init(k_empty(s), kConsumerWarps);
      hopper::barrier_init(v_empty(s), kConsumerWarps);
    }
    for (int s = 0; s < kRawStages; ++s) {
      hopper::barrier_init(raw_k_full(s), 1);
      hopper::barrier_init(raw_v_full(s), 1);
    }
    hopper::fence_barrier_init();
  }

  static __device__ __forceinline__ TileRange key_tiles(const ExtendParams& p,
                                                        const ExtendTile& tile) {
    TileRange range = tile_range<kKeys>(p.scoring, tile.position,
                                        tile.position + tile.num_tokens - 1, tile.seq_len);
    range.end = max(range.end,
                    range.begin + 1);  // never none, if only a tile that nobody sees
    // All lanes agree; saying so keeps the loop and its wgmma operands in
    // uniform registers.
    range.begin = __shfl_sync(0xffffffffu, range.begin, 0);
    range.end = __shfl_sync(0xffffffffu, range.end, 0);
    return range;
  }
};

// A block's share of the plan. It is sorted, longest first within a section,
// and dealt out in rounds of alternating direction: each block gets one item of
// every round, and the sums come out even.
class ExtendShare {
 public:
  __device__ __forceinline__ explicit ExtendShare(const ExtendParams& p)
      : p_(p), num_items_(__shfl_sync(0xffffffffu, p.plan[0], 0)) {}

  // The next item into `tile`; false after the last.
  __device__ __forceinline__ bool next(ExtendTile& tile) {
    const int blocks = static_cast<int>(gridDim.x);
    const int block = static_cast<int>(blockIdx.x);
    const int idx = first_ + (forward_ ? block : blocks - 1 - block);
    if (idx >= num_items_) return false;
    first_ += blocks;
    forward_ = !forward_;
    tile = planned_tile(p_, idx);
    return true;
  }

 private:
  const ExtendParams& p_;
  int num_items_;
  int first_ = 0;  // of the round
  bool forward_ = true;
};

}  // namespace srt::cuda
