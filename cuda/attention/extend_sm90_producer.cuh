// The producers of the Hopper extend kernel: one warp copies queries and keys,
// one values, by TMA.
#pragma once

#include "attention/extend_sm90_layout.cuh"
#include "common/mma.cuh"

namespace srt::cuda {

template <typename Layout>
struct ExtendProducer {
  static constexpr int kKeys = Layout::kKeys;
  static constexpr unsigned kFullWarp = 0xffffffffu;

  const ExtendSm90Params& params;
  const Layout smem;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int log2_page = params.p.kv.log2_page_size;
  const int group = params.p.num_q_heads / params.p.kv.num_kv_heads;

  // Each lane's page of key tile n; -1, which TMA fills with zeros, past the
  // sequence's end.
  __device__ __forceinline__ int lane_page(const ExtendTile& tile, int n) const {
    const int page_idx = ((n * kKeys) >> log2_page) + lane;
    const bool valid = (lane << log2_page) < kKeys && (page_idx << log2_page) < tile.seq_len;
    return valid ? tile.pages[page_idx] : -1;
  }

  // Cuts key tile n, whose pages the lanes hold, into boxes: runs of kRunKeys where the pool holds
  // their pages side by side, single pages elsewhere. Lane 0 calls
  // `copy(map, first key of the tile, first slot, page)` for each.
  template <typename Copy>
  __device__ __forceinline__ void for_each_box(const ExtendPoolMaps& maps, int n, int page,
                                               Copy copy) const {
    const int slots = min(1 << log2_page, kKeys);
    const int first_slot = (n * kKeys) & ((1 << log2_page) - 1);
    const int run = max(kRunKeys >> log2_page, 1);  // pages
    const int in_run = lane & (run - 1);
    const int run_start = __shfl_sync(kFullWarp, page, lane - in_run);
    const unsigned joined = __ballot_sync(kFullWarp, page == run_start + in_run);
    const unsigned whole = (1u << run) - 1u;
    for (int i = 0; i * slots < kKeys;) {
      const bool is_run = run > 1 && i % run == 0 && (joined >> i & whole) == whole;
      const int box_page = __shfl_sync(kFullWarp, page, i);
      if (lane == 0) copy(is_run ? maps.run : maps.page, i * slots, first_slot, box_page);
      i += is_run ? run : 1;
    }
  }

  // Starts the copies of one tensor's key tile n; the lanes hold its pages.
  template <int kBlocks>
  __device__ __forceinline__ void copy_tile(const ExtendPoolMaps& maps, const ExtendTile& tile,
                                            int n, int page, uint32_t dst, uint32_t full) const {
    if (lane == 0) hopper::barrier_expect_bytes(full, kBlocks * Layout::kKeyBlockBytes);
    __syncwarp();  // the expectation stands before any copy can complete
    for_each_box(maps, n, page, [&](const CUtensorMap& map, int key, int first_slot, int box_page) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
        hopper::load_box(dst + b * Layout::kKeyBlockBytes + key * 128, &map, full, b * 64,
                         first_slot, tile.kv_head, box_page);
    });
  }

  __device__ __forceinline__ void copy_queries(const ExtendTile& tile, int stage) const {
    if (lane != 0) return;
    const int rows = group * extend_tile_tokens(group);
    const uint32_t full = smem.q_full(stage);
    hopper::barrier_expect_bytes(full, Layout::kBlocksQk * 128 * rows);
#pragma unroll
    for (int b = 0; b < Layout::kBlocksQk; ++b)
      hopper::load_box(smem.q_tile(stage) + b * Layout::kQBlockBytes, &params.q, full, b * 64,
                       tile.kv_head * group, tile.q_begin);
  }

  __device__ __forceinline__ void produce_queries_and_keys() const {
    ExtendShare share(params.p);
    ExtendTile tile;
    Ring<Layout::kStages> ring;
    Ring<Layout::kQStages> q_ring;
    while (share.next(tile)) {
      const TileRange keys = Layout::key_tiles(params.p, tile);
      int page = lane_page(tile, keys.end - 1);
      hopper::barrier_wait(smem.q_empty(q_ring.stage), q_ring.parity ^ 1);
      copy_queries(tile, q_ring.stage);
      q_ring.advance();
      for (int n = keys.end - 1; n >= keys.begin; --n) {
        const int next_page = n > keys.begin ? lane_page(tile, n - 1) : -1;
        hopper::barrier_wait(smem.k_empty(ring.stage), ring.parity ^ 1);
        copy_tile<Layout::kBlocksQk>(params.k, tile, n, page, smem.k_tile(ring.stage),
                                     smem.k_full(ring.stage));
        ring.advance();
        page = next_page;
      }
    }
  }

  // Zeroes the values past the sequence's end in its last page: their
  // probabilities are zero, but zero times whatever stands there need not be.
  __device__ __forceinline__ void zero_tail(const ExtendTile& tile, int n, uint32_t v) const {
    const int begin = tile.seq_len - n * kKeys;
    for (int i = begin * 8 + lane; i < kKeys * 8; i += 32)
#pragma unroll
      for (int b = 0; b < Layout::kBlocksV; ++b)
        ptx::store_shared_16(v + b * Layout::kKeyBlockBytes + i * 16, make_uint4(0, 0, 0, 0));
    hopper::fence_async_proxy();
    __syncwarp();  // every lane's zeros stand before the consumers are told
  }

  __device__ __forceinline__ void produce_values() const {
    ExtendShare share(params.p);
    ExtendTile tile;
    Ring<Layout::kStages> ring;
    uint32_t tail_parity = 0;
    while (share.next(tile)) {
      const TileRange keys = Layout::key_tiles(params.p, tile);
      int page = lane_page(tile, keys.end - 1);
      for (int n = keys.end - 1; n >= keys.begin; --n) {
        const int next_page = n > keys.begin ? lane_page(tile, n - 1) : -1;
        const uint32_t v = smem.v_tile(ring.stage);
        const uint32_t full = smem.v_full(ring.stage);
        const bool tail = (n + 1) * kKeys > tile.seq_len;
        hopper::barrier_wait(smem.v_empty(ring.stage), ring.parity ^ 1);
        copy_tile<Layout::kBlocksV>(params.v, tile, n, page, v, tail ? smem.v_tail() : full);
        if (tail) {
          hopper::barrier_wait(smem.v_tail(), tail_parity);
          tail_parity ^= 1;
          zero_tail(tile, n, v);
          if (lane == 0) hopper::barrier_arrive(full);
        }
        ring.advance();
        page = next_page;
      }
    }
  }
};

}  // namespace srt::cuda
