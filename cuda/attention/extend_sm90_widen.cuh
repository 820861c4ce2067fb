// The producers of the Hopper extend kernel over fp8 pools: TMA brings raw
// tiles, two warps widen the keys and two the values into the tiles that wgmma
// reads.
#pragma once

#include "attention/extend_sm90_producer.cuh"
#include "attention/kv_fp8.cuh"

namespace srt::cuda {

// Steps through a block's share key tile by key tile, in the order in which
// they are consumed.
template <typename Layout>
class KeyTileWalk {
 public:
  __device__ __forceinline__ explicit KeyTileWalk(const ExtendParams& p) : p_(p), share_(p) {
    next_tile();
  }

  __device__ __forceinline__ void advance() {
    is_first = false;
    if (--key_tile < begin_) next_tile();
  }

  bool valid;     // false after the last
  bool is_first;  // of its query tile
  int key_tile;
  ExtendTile tile;

 private:
  __device__ __forceinline__ void next_tile() {
    is_first = true;
    valid = share_.next(tile);
    if (!valid) return;
    const TileRange keys = Layout::key_tiles(p_, tile);
    begin_ = keys.begin;
    key_tile = keys.end - 1;
  }

  const ExtendParams& p_;
  ExtendShare share_;
  int begin_;
};

template <typename T, typename Layout>
struct ExtendWidener : ExtendProducer<Layout> {
  using Base = ExtendProducer<Layout>;
  using Base::kKeys;
  using Base::lane;
  using Base::params;
  using Base::smem;
  static constexpr int kTeam = 64;        // threads that widen one tensor
  static constexpr int kTeamBarrier = 5;  // named barriers 5 and 6

  template <bool kIsKeys>
  __device__ __forceinline__ void copy_raw(const KeyTileWalk<Layout>& walk, int stage) const {
    constexpr int kDim = kIsKeys ? Layout::kDimQk : Layout::kDimV;
    const uint32_t full = kIsKeys ? smem.raw_k_full(stage) : smem.raw_v_full(stage);
    const uint32_t dst = kIsKeys ? smem.raw_k_tile(stage) : smem.raw_v_tile(stage);
    const int page = this->lane_page(walk.tile, walk.key_tile);
    if (lane == 0) hopper::barrier_expect_bytes(full, kKeys * kDim);
    __syncwarp();  // the expectation stands before any copy can complete
    this->for_each_box(kIsKeys ? params.k : params.v, walk.key_tile, page,
                       [&](const CUtensorMap& map, int key, int first_slot, int box_page) {
                         hopper::load_box(dst + key * kDim, &map, full, 0, first_slot,
                                          walk.tile.kv_head, box_page);
                       });
  }

  // fp8 rows to swizzled rows of T; keys from `num_valid` on become zeros,
  // whatever their page holds.
  template <int kDim, KvDtype kKv>
  __device__ __forceinline__ void widen(uint32_t raw, uint32_t dst, int num_valid) const {
    constexpr int kRowPieces = kDim / 16;  // 16 values
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x) % kTeam; i < kKeys * kRowPieces; i += kTeam) {
      const int row = i / kRowPieces;
      const int chunk = i % kRowPieces * 2;
      uint4 x = ptx::load_shared_16(raw + i * 16);
      if (row >= num_valid) x = make_uint4(0, 0, 0, 0);
      const uint32_t row_address = dst + chunk / 8 * Layout::kKeyBlockBytes + row * 128;
      ptx::store_shared_16(row_address + ((chunk % 8) ^ (row % 8)) * 16,
                           widen_fp8x8<T, kKv>(make_uint2(x.x, x.y)));
      ptx::store_shared_16(row_address + ((chunk % 8 + 1) ^ (row % 8)) * 16,
                           widen_fp8x8<T, kKv>(make_uint2(x.z, x.w)));
    }
  }

  template <bool kIsKeys>
  __device__ __forceinline__ void produce() const {
    constexpr int kDim = kIsKeys ? Layout::kDimQk : Layout::kDimV;
    const bool leads = static_cast<int>(threadIdx.x) % kTeam < 32;
    KeyTileWalk<Layout> walk(params.p);
    KeyTileWalk<Layout> ahead(params.p);  // whose raw tile is copied next
    Ring<Layout::kRawStages> raw;
    Ring<Layout::kStages> ring;
    Ring<Layout::kQStages> q_ring;
    for (int s = 0; s < Layout::kRawStages && ahead.valid; ++s, ahead.advance())
      if (leads) copy_raw<kIsKeys>(ahead, s);
    for (; walk.valid; walk.advance()) {
      const uint32_t src = kIsKeys ? smem.raw_k_tile(raw.stage) : smem.raw_v_tile(raw.stage);
      const uint32_t dst = kIsKeys ? smem.k_tile(ring.stage) : smem.v_tile(ring.stage);
      hopper::barrier_wait(kIsKeys ? smem.raw_k_full(raw.stage) : smem.raw_v_full(raw.stage),
                           raw.parity);
      hopper::barrier_wait(kIsKeys ? smem.k_empty(ring.stage) : smem.v_empty(ring.stage),
                           ring.parity ^ 1);
      const int num_valid = walk.tile.seq_len - walk.key_tile * kKeys;
      if (params.p.kv.dtype == KvDtype::kE4M3) {
        widen<kDim, KvDtype::kE4M3>(src, dst, num_valid);
      } else {
        widen<kDim, KvDtype::kE5M2>(src, dst, num_valid);
      }
      hopper::fence_async_proxy();
      __syncwarp();  // the warp's rows stand before the consumers are told
      if (lane == 0)
        hopper::barrier_arrive(kIsKeys ? smem.k_full(ring.stage) : smem.v_full(ring.stage));
      hopper::named_barrier(kTeamBarrier + (kIsKeys ? 0 : 1),
                            kTeam);  // the raw tile has been read
      if (ahead.valid) {
        if (leads) copy_raw<kIsKeys>(ahead, raw.stage);
        ahead.advance();
      }
      if (kIsKeys && leads && walk.is_first) {
        hopper::barrier_wait(smem.q_empty(q_ring.stage), q_ring.parity ^ 1);
        this->copy_queries(walk.tile, q_ring.stage);
        q_ring.advance();
      }
      raw.advance();
      ring.advance();
    }
  }
};

}  // namespace srt::cuda
