// A consumer warpgroup of the Hopper extend kernel: 64 rows of each query tile.
#pragma once

#include "attention/extend_sm90_layout.cuh"
#include "attention/softmax.cuh"
#include "attention/wgmma.cuh"
#include "common/mma.cuh"

namespace srt::cuda {

// Lane q of four has piece q of each of four 32-byte runs, and gets all pieces
// of run q.
__device__ __forceinline__ void transpose_quad(uint32_t (&x)[4], int lane) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = (lane & bit) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & bit) != 0) continue;
      const uint32_t received = __shfl_xor_sync(0xffffffffu, upper ? x[i] : x[i + bit], bit);
      (upper ? x[i] : x[i + bit]) = received;
    }
  }
}

// Runs the block's key tiles as one stream: the scores of tile n + 1 are
// multiplied beside the output of tile n also where n + 1 is the first of the
// next query tile, so that no query tile pays for filling and draining the
// pipeline.
template <typename T, typename Layout>
struct ExtendConsumer {
  static constexpr int kDimQk = Layout::kDimQk;
  static constexpr int kDimV = Layout::kDimV;
  static constexpr int kKeys = Layout::kKeys;
  static constexpr int kTurnBarrier = 1;  // named barriers 1 and 2: a warpgroup's turn

  const ExtendParams& p;
  const Layout smem;
  const int warpgroup;  // 0 or 1
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group = p.num_q_heads / p.kv.num_kv_heads;
  // This thread's rows in the tile, and the token and head of each.
  const int row = warpgroup * 64 + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane / 4;
  const int row_token[2] = {row / group, (row + 8) / group};
  const int row_head[2] = {row % group, (row + 8) % group};
  const bool capped = p.scoring.softcap > 0.0f;
  const float scale = p.scoring.scale * (Layout::kFp8 ? p.kv.k_scale : 1.0f);
  const float inner_scale = capped ? scale / p.scoring.softcap : 0.0f;
  const float scale_log2 = (capped ? p.scoring.softcap : scale) * kLog2e;

  Ring<Layout::kQStages> q_ring;
  Ring<Layout::kStages> k_ring;
  Ring<Layout::kStages> v_ring;
  SoftmaxState state;
  uint32_t queries[Layout::kQueriesInRegisters ? kDimQk / 16 : 1][4];
  uint32_t probs[kKeys / 16][4];
  float o[kDimV / 2];

  // The turn passes between the warpgroups, so that one issues products while
  // the other is in its softmax. Both run the same number of key tiles.
  __device__ __forceinline__ void take_turn() const {
    hopper::named_barrier(kTurnBarrier + warpgroup, Layout::kConsumers);
  }
  __device__ __forceinline__ void pass_turn() const {
    hopper::named_barrier_arrive(kTurnBarrier + 1 - warpgroup, Layout::kConsumers);
  }
  __device__ __forceinline__ void release(uint32_t empty) const {
    if (lane == 0) hopper::barrier_arrive(empty);
  }
  __device__ __forceinline__ void release_queries() {
    release(smem.q_empty(q_ring.stage));
    q_ring.advance();
  }
  __device__ __forceinline__ void await_queries() {
    hopper::barrier_wait(smem.q_full(q_ring.stage), q_ring.parity);
    if constexpr (Layout::kQueriesInRegisters) load_queries();
  }
  __device__ __forceinline__ void await_keys() const {
    hopper::barrier_wait(smem.k_full(k_ring.stage), k_ring.parity);
  }

  // This warp's 16 rows as wgmma's A fragments; nobody needs their shared memory then.
  __device__ __forceinline__ void load_queries() {
    const int warp_row = static_cast<int>(threadIdx.x) / 32 % 4 * 16;
    const uint32_t row = smem.q_tile(q_ring.stage) + (warpgroup * 64 + warp_row + lane % 16) * 128;
#pragma unroll
    for (int step = 0; step < kDimQk / 16; ++step) {
      const int piece = (step % 4 * 2 + lane / 16) ^ (lane % 8);  // of 16 bytes, swizzled
      ptx::ldmatrix_x4(queries[step], row + step / 4 * Layout::kQBlockBytes + piece * 16);
    }
    release_queries();
  }

  // s = q k^T, left running.
  __device__ __forceinline__ void issue_scores(float (&s)[kKeys / 2]) const {
    using Wgmma = hopper::AttentionWgmma<T, kKeys, false>;
    const uint64_t q =
        hopper::wgmma_operand(smem.q_tile(q_ring.stage) + warpgroup * 64 * 128, 16, 1024);
    const uint64_t k = hopper::wgmma_operand(smem.k_tile(k_ring.stage), 16, 1024);
    hopper::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDimQk / 16; ++step) {
      const int block = step / 4;
      const int column_bytes = step % 4 * 32;
      const uint64_t keys = k + ((block * Layout::kKeyBlockBytes + column_bytes) >> 4);
      if constexpr (Layout::kQueriesInRegisters) {
        Wgmma::rs(s, queries[step], keys, step != 0);
      } else {
        Wgmma::ss(s, q + ((block * Layout::kQBlockBytes + column_bytes) >> 4), keys, step != 0);
      }
    }
    hopper::wgmma_commit();
  }

  // o += p v, left running.
  __device__ __forceinline__ void issue_output() {
    hopper::barrier_wait(smem.v_full(v_ring.stage), v_ring.parity);
    const uint64_t v =
        hopper::wgmma_operand(smem.v_tile(v_ring.stage), Layout::kKeyBlockBytes, 1024);
    hopper::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step)
      hopper::AttentionWgmma<T, kDimV, true>::rs(o, probs[step], v + ((step * 16 * 128) >> 4), 1);
    hopper::wgmma_commit();
  }

  // Waits for the scores; the key tile is free then, and after the last one the
  // queries too, if they are in shared memory.
  template <int kPending>
  __device__ __forceinline__ void finish_scores(float (&s)[kKeys / 2], bool last) {
    hopper::wgmma_wait<kPending>();
    hopper::fence_registers(s);
    release(smem.k_empty(k_ring.stage));
    k_ring.advance();
    if (!Layout::kQueriesInRegisters && last) release_queries();
  }
  __device__ __forceinline__ void finish_output() {
    hopper::wgmma_wait<0>();
    hopper::fence_registers(o);
    release(smem.v_empty(v_ring.stage));
    v_ring.advance();
  }

  // Scores of key tile n to probabilities, still as floats. Returns whether the
  // output so far must be rescaled; most tiles leave every maximum of a warp as
  // it was.
  //
  // The vote reads the sums too, so that ptxas cannot move the exponentials
  // below it, behind the wait for the output and out of the products' shadow,
  // as it otherwise does.
  __device__ __forceinline__ bool soften(float (&s)[kKeys / 2], const ExtendTile& tile, int n,
                                         const TileRange& keys, float (&rescale)[2]) {
    if (capped) apply_softcap(s, inner_scale);
    if (keys.needs_mask(n)) {
      const KeyRange rows[2] = {
          visible_keys(p.scoring, tile.position + row_token[0], tile.seq_len),
          visible_keys(p.scoring, tile.position + row_token[1], tile.seq_len)};
      apply_mask(s, rows, n * kKeys + 2 * (lane % 4));
    }
    online_softmax(s, state, scale_log2, rescale);
    return __any_sync(0xffffffffu, rescale[0] != 1.0f || rescale[1] != 1.0f ||
                                       !(state.sum[0] + state.sum[1] >= 0.0f));
  }

  __device__ __forceinline__ void pack(const float (&s)[kKeys / 2]) {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i)
      probs[i / 4][i % 4] = ptx::pack_pair<T>(s[2 * i], s[2 * i + 1]);
  }

  __device__ __forceinline__ void clear_output() {
#pragma unroll
    for (int i = 0; i < kDimV / 2; ++i) o[i] = 0.0f;
  }

  // Writes one of this thread's rows; four lanes write 64 neighbouring bytes at
  // a time.
  __device__ __forceinline__ void store_row(const ExtendTile& tile, int r, float inverse) const {
    const bool valid = row_token[r] < tile.num_tokens;
    const int64_t token = tile.q_begin + row_token[r];
    const int64_t head = tile.kv_head * group + row_head[r];
    T* dst = static_cast<T*>(p.out) + token * p.out_token_stride + head * kDimV;
    constexpr int kRuns = kDimV / 8;  // of 8 columns
#pragma unroll
    for (int first = 0; first < kRuns; first += 4) {
      uint32_t x[4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (first + i < kRuns)
          x[i] = ptx::pack_pair<T>(o[4 * (first + i) + 2 * r] * inverse,
                                   o[4 * (first + i) + 2 * r + 1] * inverse);
      transpose_quad(x, lane);
      const int run = first + lane % 4;
      if (valid && run < kRuns)
        *reinterpret_cast<uint4*>(dst + 8 * run) = make_uint4(x[0], x[1], x[2], x[3]);
    }
  }

  __device__ __forceinline__ void store(const ExtendTile& tile, const SoftmaxState& final) const {
    float inverse[2];
    float lse[2];
    finish_softmax(final, scale_log2, inverse, lse);
#pragma unroll
    for (int r = 0; r < 2; ++r)
      store_row(tile, r, Layout::kFp8 ? inverse[r] * p.kv.v_scale : inverse[r]);
    if (p.lse == nullptr || lane % 4 != 0) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (row_token[r] >= tile.num_tokens) continue;
      const int64_t head = tile.kv_head * group + row_head[r];
      p.lse[head * p.lse_stride + tile.q_begin + row_token[r]] = lse[r];
    }
  }

  __device__ __forceinline__ void run() {
    ExtendShare share(p);
    ExtendTile tile;                  // whose probabilities are in `probs`
    ExtendTile upcoming;              // the query tile after it, read early
    if (warpgroup == 1) pass_turn();  // the first turn is warpgroup 0's
    if (!share.next(tile)) return;
    bool more = share.next(upcoming);
    TileRange keys = Layout::key_tiles(p, tile);
    int n = keys.end - 1;
    float s[kKeys / 2];
    float rescale[2];
    await_queries();
    await_keys();
    issue_scores(s);
    finish_scores<0>(s, n == keys.begin);
    soften(s, tile, n, keys, rescale);
    pack(s);
    clear_output();
    if (n > keys.begin || more) await_keys();
    while (n > keys.begin || more) {
      const bool crosses = n == keys.begin;  // to the next query tile
      if (crosses) await_queries();
      take_turn();
      issue_scores(s);
      issue_output();
      pass_turn();
      const ExtendTile finished = tile;
      const SoftmaxState final = state;
      if (crosses) {
        tile = upcoming;
        more = share.next(upcoming);
        keys = Layout::key_tiles(p, tile);
        n = keys.end;
        state = SoftmaxState();
      }
      --n;
      finish_scores<1>(s, n == keys.begin);
      const bool rescales = soften(s, tile, n, keys, rescale);
      // Awaited here, not at the top, to end the basic block that holds the
      // softmax: see soften().
      if (n > keys.begin || more) await_keys();
      finish_output();
      pack(s);
      if (crosses) {
        store(finished, final);
        clear_output();
      } else if (rescales) {
        rescale_rows(o, rescale);
      }
    }
    issue_output();
    finish_output();
    store(tile, state);
  }
};

}  // namespace srt::cuda
