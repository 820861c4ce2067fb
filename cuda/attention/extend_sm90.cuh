// Paged extend attention for Hopper: a producer warp feeds tiles by TMA, two warpgroups multiply
// with wgmma and take turns, so that one's softmax runs under the other's products.
//
// Shapes    see ExtendParams; unquantized pool, page size >= 8, group <= kExtendTileRows.
// Parallel  one block per (tile of 128 query rows, KV head), longest tiles first. A tile's rows are
//           whole tokens times the query heads of one KV head: one TMA box of q.
// Bound     tensor cores: 2 * (head_dim + head_dim_v) * visible (query, key) pairs * num_q_heads.
// Numerics  scores and output accumulate in float; P is rounded to T for the second product.
//
// After FlashAttention-3 (Shah et al., 2024): warp specialisation, ping-pong, and within a
// warpgroup the scores of tile n - 1 beside the output of tile n.
#pragma once

#include "attention/extend.h"
#include "attention/extend_tile.cuh"
#include "attention/mask.cuh"
#include "attention/softmax.cuh"
#include "attention/wgmma.cuh"
#include "common/hopper.cuh"
#include "common/mma.cuh"
#include "common/tensor_map.h"

namespace srt::cuda {

struct ExtendSm90Params {
  CUtensorMap q;  // [tokens][heads][dim], box: one tile's tokens, one group, 64 columns
  CUtensorMap k;  // [pages][heads][slots][dim], box: a page or a key tile, 64 columns
  CUtensorMap v;
  ExtendParams p;
};

template <typename T, int kDimQk, int kDimV>
struct ExtendSm90 {
  static constexpr int kWarpgroups = 2;  // consumers
  static constexpr int kConsumers = 128 * kWarpgroups;
  static constexpr int kThreads = kConsumers + 128;
  static constexpr int kRows = 64 * kWarpgroups;
  static_assert(kRows == kExtendTileRows);
  static constexpr int kKeys = kDimV > 128 ? 64 : 128;  // keys of one tile
  static constexpr int kStages = 2;
  static constexpr int kBlocksQk = div_up(kDimQk, 64);  // blocks of 64 columns: 128-byte rows
  static constexpr int kBlocksV = div_up(kDimV, 64);

  static constexpr int kQBlockBytes = kRows * 128;
  static constexpr int kKeyBlockBytes = kKeys * 128;
  static constexpr int kQBytes = kBlocksQk * kQBlockBytes;
  static constexpr int kKBytes = kBlocksQk * kKeyBlockBytes;
  static constexpr int kVBytes = kBlocksV * kKeyBlockBytes;
  static constexpr int kBarrierBytes = 8 * (1 + 4 * kStages + 1);
  static constexpr int kSmemBytes = kQBytes + kStages * (kKBytes + kVBytes) + kBarrierBytes + 1024;

  // 65536 registers over 384 threads: the copy warps need few, the products many.
  static constexpr int kProducerRegisters = 24;
  static constexpr int kConsumerRegisters = 240;

  // Named barriers: 0 is __syncthreads; a turn per warpgroup, then a private one per warpgroup.
  static constexpr int kTurnBarrier = 1;
  static constexpr int kOwnBarrier = 3;

  // A ring of kStages buffers: where it stands and the parity of its current round.
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

  const ExtendSm90Params& params;
  const ExtendParams& p;
  const uint32_t smem;  // 1024-byte aligned
  const ExtendTile tile;
  const int group;

  __device__ __forceinline__ uint32_t k_tile(int stage) const {
    return smem + kQBytes + stage * kKBytes;
  }
  __device__ __forceinline__ uint32_t v_tile(int stage) const {
    return smem + kQBytes + kStages * kKBytes + stage * kVBytes;
  }
  __device__ __forceinline__ uint32_t barriers() const {
    return smem + kQBytes + kStages * (kKBytes + kVBytes);
  }
  __device__ __forceinline__ uint32_t q_full() const { return barriers(); }
  __device__ __forceinline__ uint32_t v_tail() const { return barriers() + 8; }
  __device__ __forceinline__ uint32_t k_full(int s) const { return barriers() + 8 * (2 + s); }
  __device__ __forceinline__ uint32_t k_empty(int s) const { return k_full(s) + 8 * kStages; }
  __device__ __forceinline__ uint32_t v_full(int s) const { return k_full(s) + 16 * kStages; }
  __device__ __forceinline__ uint32_t v_empty(int s) const { return k_full(s) + 24 * kStages; }

  __device__ __forceinline__ void init_barriers() const {
    hopper::barrier_init(q_full(), 1);
    hopper::barrier_init(v_tail(), 1);
    for (int s = 0; s < kStages; ++s) {
      hopper::barrier_init(k_full(s), 1);
      hopper::barrier_init(v_full(s), 1);
      hopper::barrier_init(k_empty(s), kConsumers / 32);  // one arrival a warp
      hopper::barrier_init(v_empty(s), kConsumers / 32);
    }
    hopper::fence_barrier_init();
  }

  __device__ __forceinline__ TileRange range() const {
    return tile_range<kKeys>(p.scoring, tile.position, tile.position + tile.num_tokens - 1,
                             tile.seq_len);
  }

  // ---- the producer warp ----

  // Each lane's page of key tile n, -1 (which TMA fills with zeros) past the sequence's end.
  __device__ __forceinline__ int lane_page(int n, int lane) const {
    const int page_idx = ((n * kKeys) >> p.kv.log2_page_size) + lane;
    const bool valid = (page_idx << p.kv.log2_page_size) < tile.seq_len;
    return valid && lane < boxes() ? tile.pages[page_idx] : -1;
  }
  __device__ __forceinline__ int box_slots() const { return min(1 << p.kv.log2_page_size, kKeys); }
  __device__ __forceinline__ int boxes() const { return kKeys / box_slots(); }

  // Starts the copies of one tensor's key tile n; lanes hold its pages.
  template <int kBlocks>
  __device__ __forceinline__ void copy_tile(const CUtensorMap& map, int n, int page, uint32_t dst,
                                            uint32_t full, int lane) const {
    if (lane == 0) hopper::barrier_expect_bytes(full, kBlocks * kKeyBlockBytes);
    __syncwarp();  // the expectation stands before any copy can complete
    const int slots = box_slots();
    const int slot = (n * kKeys) & ((1 << p.kv.log2_page_size) - 1);
    for (int i = 0; i < kKeys / slots; ++i) {
      const int box_page = __shfl_sync(0xffffffffu, page, i);
      if (lane != 0) continue;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
        hopper::load_box(dst + b * kKeyBlockBytes + i * slots * 128, &map, full, b * 64, slot,
                         tile.kv_head, box_page);
    }
  }

  // Zeroes the values past the sequence's end in its last page: their probabilities are zero, but
  // zero times whatever stands there need not be.
  __device__ __forceinline__ void zero_tail(int n, uint32_t v, int lane) const {
    const int begin = tile.seq_len - n * kKeys;
    for (int i = begin * 8 + lane; i < kKeys * 8; i += 32)
#pragma unroll
      for (int b = 0; b < kBlocksV; ++b)
        ptx::store_shared_16(v + b * kKeyBlockBytes + i * 16, make_uint4(0, 0, 0, 0));
  }

  __device__ __forceinline__ void produce_k(int n, int page, Ring& ring, int lane) const {
    hopper::barrier_wait(k_empty(ring.stage), ring.parity ^ 1);
    copy_tile<kBlocksQk>(params.k, n, page, k_tile(ring.stage), k_full(ring.stage), lane);
    ring.advance();
  }

  __device__ __forceinline__ void produce_v(int n, int page, Ring& ring, int lane) const {
    hopper::barrier_wait(v_empty(ring.stage), ring.parity ^ 1);
    const uint32_t v = v_tile(ring.stage);
    const uint32_t full = v_full(ring.stage);
    const bool tail = (n + 1) * kKeys > tile.seq_len;
    copy_tile<kBlocksV>(params.v, n, page, v, tail ? v_tail() : full, lane);
    if (tail) {  // at most one such tile a sequence: the last
      hopper::barrier_wait(v_tail(), 0);
      zero_tail(n, v, lane);
      hopper::fence_async_proxy();
      __syncwarp();  // every lane's zeros stand before the consumers are told
      if (lane == 0) hopper::barrier_arrive(full);
    }
    ring.advance();
  }

  __device__ __forceinline__ void produce() const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const TileRange keys = range();
    if (keys.begin >= keys.end) return;
    if (lane == 0) {
      hopper::barrier_expect_bytes(q_full(), kBlocksQk * 128 * group * extend_tile_tokens(group));
#pragma unroll
      for (int b = 0; b < kBlocksQk; ++b)
        hopper::load_box(smem + b * kQBlockBytes, &params.q, q_full(), b * 64, tile.kv_head * group,
                         tile.q_begin);
    }
    Ring k_ring;
    Ring v_ring;
    int page = lane_page(keys.end - 1, lane);
    produce_k(keys.end - 1, page, k_ring, lane);
    for (int n = keys.end - 1; n > keys.begin; --n) {
      const int next_page = lane_page(n - 1, lane);
      produce_k(n - 1, next_page, k_ring, lane);
      produce_v(n, page, v_ring, lane);
      page = next_page;
    }
    produce_v(keys.begin, page, v_ring, lane);
  }

  // ---- a consumer warpgroup ----

  struct Consumer {
    const ExtendSm90& kernel;
    const int warpgroup;  // 0 or 1
    const int thread = static_cast<int>(threadIdx.x) % 128;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    // This thread's first row in the tile; the second is 8 below.
    const int row = warpgroup * 64 + thread / 32 * 16 + lane / 4;
    Ring k_ring;
    Ring v_ring;
    float o[kDimV / 2] = {};
    uint32_t probs[kKeys / 16][4];
    SoftmaxState state;
    float scale_log2;
    float inner_scale;  // of the tanh; 0 without a softcap

    __device__ __forceinline__ void set_scales(const Scoring& scoring) {
      const bool capped = scoring.softcap > 0.0f;
      scale_log2 = (capped ? scoring.softcap : scoring.scale) * kLog2e;
      inner_scale = capped ? scoring.scale / scoring.softcap : 0.0f;
    }

    // The turn passes between the warpgroups, so that one issues products while the other is in its
    // softmax. Both run the same number of tiles.
    __device__ __forceinline__ void take_turn() const {
      hopper::named_barrier(kTurnBarrier + warpgroup, kConsumers);
    }
    __device__ __forceinline__ void pass_turn() const {
      hopper::named_barrier_arrive(kTurnBarrier + 1 - warpgroup, kConsumers);
    }
    __device__ __forceinline__ void release(uint32_t empty) const {
      if (lane == 0) hopper::barrier_arrive(empty);
    }

    // s = q k^T, left running.
    __device__ __forceinline__ void issue_scores(float (&s)[kKeys / 2]) const {
      const uint32_t q = kernel.smem + warpgroup * 64 * 128;
      const uint64_t q_desc = hopper::wgmma_operand(q, 16, 1024);
      const uint64_t k_desc = hopper::wgmma_operand(kernel.k_tile(k_ring.stage), 16, 1024);
      hopper::wgmma_fence();
#pragma unroll
      for (int step = 0; step < kDimQk / 16; ++step) {
        const int block = step / 4;
        const int column_bytes = step % 4 * 32;
        hopper::AttentionWgmma<T, kKeys, false>::ss(
            s, q_desc + ((block * kQBlockBytes + column_bytes) >> 4),
            k_desc + ((block * kKeyBlockBytes + column_bytes) >> 4), step != 0);
      }
      hopper::wgmma_commit();
    }

    // o += p v, left running.
    __device__ __forceinline__ void issue_output() {
      const uint64_t v_desc =
          hopper::wgmma_operand(kernel.v_tile(v_ring.stage), kKeyBlockBytes, 1024);
      hopper::wgmma_fence();
#pragma unroll
      for (int step = 0; step < kKeys / 16; ++step)
        hopper::AttentionWgmma<T, kDimV, true>::rs(o, probs[step],
                                                   v_desc + ((step * 16 * 128) >> 4), 1);
      hopper::wgmma_commit();
    }

    // Scores of tile n to probabilities, still as floats.
    __device__ __forceinline__ void soften(float (&s)[kKeys / 2], int n, const TileRange& keys,
                                           float (&rescale)[2]) {
      if (inner_scale != 0.0f) apply_softcap(s, inner_scale);
      if (keys.needs_mask(n)) {
        const ExtendTile& t = kernel.tile;
        const Scoring& scoring = kernel.p.scoring;
        const KeyRange rows[2] = {
            visible_keys(scoring, t.position + row / kernel.group, t.seq_len),
            visible_keys(scoring, t.position + (row + 8) / kernel.group, t.seq_len)};
        apply_mask(s, rows, n * kKeys + 2 * (lane % 4));
      }
      online_softmax(s, state, scale_log2, rescale);
    }

    __device__ __forceinline__ void pack(const float (&s)[kKeys / 2]) {
#pragma unroll
      for (int i = 0; i < kKeys / 4; ++i)
        probs[i / 4][i % 4] = ptx::pack_pair<T>(s[2 * i], s[2 * i + 1]);
    }

    __device__ __forceinline__ void run() {
      const TileRange keys = kernel.range();
      set_scales(kernel.p.scoring);
      if (keys.begin < keys.end) consume(keys);
      store();
    }

    __device__ __forceinline__ void consume(const TileRange& keys) {
      float s[kKeys / 2];
      float rescale[2];
      if (warpgroup == 1) pass_turn();  // the first turn is warpgroup 0's
      hopper::barrier_wait(kernel.q_full(), 0);
      hopper::barrier_wait(kernel.k_full(k_ring.stage), k_ring.parity);
      issue_scores(s);
      hopper::wgmma_wait<0>();
      hopper::fence_registers(s);
      release(kernel.k_empty(k_ring.stage));
      k_ring.advance();
      soften(s, keys.end - 1, keys, rescale);
      pack(s);
      for (int n = keys.end - 2; n >= keys.begin; --n) {
        hopper::barrier_wait(kernel.k_full(k_ring.stage), k_ring.parity);
        take_turn();
        issue_scores(s);
        hopper::barrier_wait(kernel.v_full(v_ring.stage), v_ring.parity);
        issue_output();
        pass_turn();
        hopper::wgmma_wait<1>();  // the scores
        hopper::fence_registers(s);
        release(kernel.k_empty(k_ring.stage));
        k_ring.advance();
        soften(s, n, keys, rescale);
        hopper::fence_registers(s);  // the softmax runs beside the products, not after them
        hopper::wgmma_wait<0>();  // the output so far
        hopper::fence_registers(o);
        release(kernel.v_empty(v_ring.stage));
        v_ring.advance();
        pack(s);
        rescale_rows(o, rescale);
      }
      hopper::barrier_wait(kernel.v_full(v_ring.stage), v_ring.parity);
      issue_output();
      hopper::wgmma_wait<0>();
      hopper::fence_registers(o);
      release(kernel.v_empty(v_ring.stage));
      v_ring.advance();
    }

    // Turns fragments into rows through the warpgroup's own part of the q tile, and writes them in
    // whole 16-byte pieces.
    __device__ __forceinline__ void store() {
      const ExtendParams& p = kernel.p;
      const ExtendTile& t = kernel.tile;
      const int group = kernel.group;
      const int rows = t.num_tokens * group;
      float inverse[2];
      float lse[2];
      finish_softmax(state, scale_log2, inverse, lse);
      hopper::named_barrier(kOwnBarrier + warpgroup, 128);  // nobody's products still read q
#pragma unroll
      for (int i = 0; i < kDimV / 2; i += 2) {
        const int r = (i / 2) % 2;
        ptx::store_shared_4(stage_address(row + 8 * r, i / 4) + (lane % 4) * 4,
                            ptx::pack_pair<T>(o[i] * inverse[r], o[i + 1] * inverse[r]));
      }
      __syncwarp();  // the warp's 16 rows stand before its lanes read them across
      constexpr int kRowChunks = kDimV / 8;
      const int first_row = row - lane / 4;
      for (int i = lane; i < 16 * kRowChunks; i += 32) {
        const int r = first_row + i / kRowChunks;
        const int chunk = i % kRowChunks;
        if (r >= rows) break;
        const int64_t token = t.q_begin + r / group;
        const int64_t head = t.kv_head * group + r % group;
        T* dst = static_cast<T*>(p.out) + token * p.out_token_stride + head * kDimV + chunk * 8;
        *reinterpret_cast<uint4*>(dst) = ptx::load_shared_16(stage_address(r, chunk));
      }
      if (p.lse == nullptr || lane % 4 != 0) return;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int lse_row = row + 8 * r;
        if (lse_row >= rows) continue;
        const int64_t head = t.kv_head * group + lse_row % group;
        p.lse[head * p.lse_stride + t.q_begin + lse_row / group] = lse[r];
      }
    }

    // 16-byte piece `chunk` of an output row, in q's place and swizzle.
    __device__ __forceinline__ uint32_t stage_address(int r, int chunk) const {
      return kernel.smem + chunk / 8 * kQBlockBytes + r * 128 + ((chunk % 8) ^ (r % 8)) * 16;
    }
  };
};

template <typename T, int kDimQk, int kDimV>
__global__ void __launch_bounds__(ExtendSm90<T, kDimQk, kDimV>::kThreads, 1)
    extend_sm90_kernel(const __grid_constant__ ExtendSm90Params params) {
  using Kernel = ExtendSm90<T, kDimQk, kDimV>;
  extern __shared__ unsigned char smem[];
  const ExtendParams& p = params.p;
  const int idx = static_cast<int>(blockIdx.x);
  if (idx >= p.plan[0] * p.kv.num_kv_heads) return;
  const int group = p.num_q_heads / p.kv.num_kv_heads;
  const Kernel kernel{.params = params,
                      .p = p,
                      .smem = (ptx::smem_address(smem) + 1023u) & ~1023u,
                      .tile = planned_tile(p, idx, extend_tile_tokens(group)),
                      .group = group};
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
  if (threadIdx.x == 0) kernel.init_barriers();
  __syncthreads();  // barriers stand
  if (warpgroup == 0) {
    hopper::lower_registers<Kernel::kProducerRegisters>();
    if (threadIdx.x < 32) kernel.produce();
  } else {
    hopper::raise_registers<Kernel::kConsumerRegisters>();
    typename Kernel::Consumer{.kernel = kernel, .warpgroup = warpgroup - 1}.run();
  }
}

// Tensor maps are made per launch: a microsecond of host time, and nothing to keep or invalidate.
template <typename T, int kDimQk, int kDimV>
cudaError_t launch_extend_sm90(const ExtendParams& p, cudaStream_t stream) {
  using Kernel = ExtendSm90<T, kDimQk, kDimV>;
  const int group = p.num_q_heads / p.kv.num_kv_heads;
  const int tile_tokens = extend_tile_tokens(group);
  const uint64_t page_size = uint64_t{1} << p.kv.log2_page_size;
  const auto box_slots =
      static_cast<uint32_t>(page_size < Kernel::kKeys ? page_size : Kernel::kKeys);
  const auto kv_heads = static_cast<uint64_t>(p.kv.num_kv_heads);
  ExtendSm90Params params{};
  params.p = p;
  const auto pool = [&](const void* data, uint64_t dim) {
    return TensorMap{.data = data,
                     .dtype = p.dtype,
                     .ndim = 4,
                     .dims = {dim, page_size, kv_heads, static_cast<uint64_t>(p.kv.num_pages)},
                     .strides = {1, dim, page_size * dim, kv_heads * page_size * dim},
                     .box = {64, box_slots, 1, 1}};
  };
  const TensorMap q{
      .data = p.q,
      .dtype = p.dtype,
      .ndim = 3,
      .dims = {kDimQk, static_cast<uint64_t>(p.num_q_heads), static_cast<uint64_t>(p.num_tokens)},
      .strides = {1, kDimQk, static_cast<uint64_t>(p.q_token_stride)},
      .box = {64, static_cast<uint32_t>(group), static_cast<uint32_t>(tile_tokens)}};
  if (const cudaError_t e = make_tensor_map(q, &params.q)) return e;
  if (const cudaError_t e = make_tensor_map(pool(p.kv.k, kDimQk), &params.k)) return e;
  if (const cudaError_t e = make_tensor_map(pool(p.kv.v, kDimV), &params.v)) return e;
  const int64_t tiles = extend_max_tiles(p.num_tokens, p.num_seqs, tile_tokens);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(tiles * p.kv.num_kv_heads)),
                          .block = dim3(Kernel::kThreads),
                          .smem_bytes = Kernel::kSmemBytes};
  return launch(&extend_sm90_kernel<T, kDimQk, kDimV>, shape, stream, params);
}

// Both dtypes of one head size.
template <int kDimQk, int kDimV>
cudaError_t dispatch_extend_sm90(const ExtendParams& p, cudaStream_t stream) {
  if (p.dtype == Dtype::kBF16) return launch_extend_sm90<__nv_bfloat16, kDimQk, kDimV>(p, stream);
  if (p.dtype == Dtype::kF16) return launch_extend_sm90<__half, kDimQk, kDimV>(p, stream);
  return cudaErrorInvalidValue;
}

cudaError_t extend_sm90_d64(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_sm90_d80(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_sm90_d96(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_sm90_d128(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_sm90_d192(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_sm90_d256(const ExtendParams& p, cudaStream_t stream);

}  // namespace srt::cuda
