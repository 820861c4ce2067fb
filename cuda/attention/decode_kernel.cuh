// Paged decode attention: softmax(q K^T) V for one query token per sequence.
//
// Shapes    see DecodeParams; head_dim a multiple of 16; page_size a power of two; 16-byte aligned
//           rows.
// Parallel  a persistent grid; a CTA runs over its piece of the plan's line of 16-token tiles, its
//           warps taking them in turn. A warp copies its tiles into a ring of its own and needs no
//           barrier until the unit ends; the ring fills ahead across units. A tile goes to
//           registers whole, so that its place is refilled before its products begin. The first
//           CTAs of a plan with shared prefixes run over those (prefix.cuh).
// Bound     HBM: every visible K and V byte once.
// Numerics  products in the pool's dtype (fp8: fp16) with float accumulators; softmax in float, P
//           rounded to the product's dtype; the order of additions is fixed by the plan.
#pragma once

#include <cstdint>

#include "attention/merge.cuh"
#include "attention/prefix.cuh"

namespace srt::cuda::decode {

constexpr int kLookAhead = 2;  // tiles between a page table read and its use

template <typename S>
__host__ __device__ constexpr size_t smem_bytes(int heads_per_block) {
  return static_cast<size_t>(S::kRingBytes) + S::kWarps * 8 * S::kHeadTiles * sizeof(float2) +
         static_cast<size_t>(S::kWarps) * heads_per_block * S::kMergeStride * sizeof(float);
}

// The unit that `at` stands in, and which begins in this CTA. Records are read again where they are
// needed: kept over the whole run they would take registers.
template <typename S>
__device__ __forceinline__ Unit unit_at(const Args& args,
                                        const Cursor<S::kTokens, S::kCanShare>& at,
                                        const int32_t* seqs, int num_tiles) {
  const int kv_head = at.block / args.blocks_per_kv;
  const int first = (at.block - kv_head * args.blocks_per_kv) * args.heads_per_block;
  Unit unit;
  unit.token = at.seq;
  unit.head = kv_head * args.group + first;
  unit.num_heads = min(args.heads_per_block, args.group - first);
  unit.origin = blockIdx.x;
  unit.parts = at.end == num_tiles ? load_record(args).last_parts : 1;
  unit.member = at.member(seqs);
  return unit;
}

// The unit that the run begins in may have begun in an earlier CTA.
__device__ __forceinline__ void find_origin(const Args& args, Unit& unit) {
  const Record record = load_record(args);
  unit.origin = record.origin;
  unit.parts = record.parts;
}

template <typename S>
__device__ __forceinline__ const void* query_row(const Args& args, const Unit& unit) {
  return static_cast<const uint16_t*>(args.q) + unit.token * args.q_stride +
         unit.head * S::kHeadDim;
}

// A warp's ring of stages; each holds a K and a V tile.
template <typename S>
struct Ring {
  uint32_t base;
  int stage = 0;

  __device__ __forceinline__ uint32_t k() const { return base + stage * (2 * S::kTileBytes); }
  __device__ __forceinline__ uint32_t v() const { return k() + S::kTileBytes; }
  __device__ __forceinline__ void step() { stage = stage + 1 == S::kStages ? 0 : stage + 1; }
};

// The next tiles of a warp, on their way from the page table.
struct Ahead {
  Located tiles[kLookAhead];

  // Puts a tile behind the others; the first leaves.
  __device__ __forceinline__ void shift(const Located& last) {
#pragma unroll
    for (int i = 1; i < kLookAhead; ++i) tiles[i - 1] = tiles[i];
    tiles[kLookAhead - 1] = last;
  }
};

// Starts the first kStages tiles, and the page table reads of those behind them. Under programmatic
// dependent launch all but the newest tokens' tiles lie in the pool already, so most copies need
// not wait for the previous kernel. Not unrolled: between a step's other kernels, code that no
// cache holds any more costs more than a loop does.
template <typename S>
__device__ __forceinline__ int fill_ring(const Args& args, Fetcher<S>& fetcher, Ring<S>& ring,
                                         Ahead& ahead, int place) {
  bool waited = false;
#pragma unroll 1
  for (int i = -kLookAhead; i < S::kStages; ++i, place += S::kWarps) {
    if (i >= 0) {
      const Located& tile = ahead.tiles[0];
      if (tile.is_new && !waited) {
        ptx::grid_wait();
        waited = true;
      }
      fetcher.copy_pair(args, tile, ring.k(), ring.v());
      ring.step();
    }
    ahead.shift(fetcher.locate(args, place));
  }
  if (!waited) ptx::grid_wait();
  return place;
}

// One tile: scores while V is still on its way; each buffer is refilled as soon as it stands in
// registers. `next` is the tile that follows in this stage.
template <typename S>
__device__ __forceinline__ void run_tile(const Args& args, const Queries<S>& q, Running<S>& run,
                                         const Fetcher<S>& fetcher, const Located& next,
                                         Ring<S>& ring, int2 visible, int lane) {
  const uint32_t fragment = fragment_offset<S>(lane);
  const uint32_t base = fetcher.address(args, next);
  ptx::cp_async_wait<2 * S::kStages - 1>();
  __syncwarp();  // every lane's copies of K have landed
  Fragments<S> keys;
  load_keys(keys, ring.k() + fragment);
  __syncwarp();  // all lanes have read K
  fetcher.copy(args, args.k_pool, base, next.visible, ring.k());
  Scores<S> scores;
  scores.reset();
  score(scores, q, keys);
  if (args.softcap > 0.0f) cap_tile(scores, args.score_scale, args.softcap);
  if (visible.x > 0 || visible.y < S::kTokens) mask_tile(scores, visible, lane);
  ptx::cp_async_wait<2 * S::kStages - 1>();
  __syncwarp();  // every lane's copies of V have landed
  Fragments<S> values;
  load_values(values, ring.v() + fragment);
  Probs<S> probs;
  online_softmax(run, scores, args.exp_scale, probs, lane);
  __syncwarp();  // all lanes have read V
  fetcher.copy(args, args.v_pool, base, next.visible, ring.v());
  accumulate(run, probs, values);
  ring.step();
}

template <typename S>
__device__ __forceinline__ void finish_unit(const MergeSpace<S>& space, const Args& args,
                                            const Unit& unit, int begin, int end, Running<S>& run) {
  __syncthreads();  // the last unit's results have been read
  share_running(space, args, run, unit.num_heads, threadIdx.x / 32, threadIdx.x % 32);
  __syncthreads();  // all warps' results can be read
  join_warps(space, args, unit, begin % S::kWarps, min(end - begin, S::kWarps));
  if (unit.parts > 1) {
    if (!arrive_last(args.arrivals + unit.origin, unit.parts)) return;
    join_parts<S>(args, unit);
  }
  if constexpr (S::kCanShare) {
    if (unit.member >= 0) meet_prefix<S>(args, unit, load_record(args).share_section());
  }
}

// A CTA's whole run of what sequences read for themselves.
template <typename S>
__device__ __forceinline__ void run_own(const Args& args, const Record& record, uint8_t* smem) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int num_tiles = record.num_tiles;
  const int32_t* seqs = args.message + args.message[message::kOffSeqs];
  Ring<S> ring{ptx::smem_address(smem) + warp * (S::kRingBytes / S::kWarps)};
  Fetcher<S> fetcher(args, seqs, record, lane);
  Ahead ahead;
  int behind = fill_ring(args, fetcher, ring, ahead, warp);
  ptx::grid_launch();
  clear_padding<S>(args);

  MergeSpace<S> space;
  space.ml = reinterpret_cast<float2*>(smem + S::kRingBytes);
  space.o = reinterpret_cast<float*>(space.ml + S::kWarps * 8 * S::kHeadTiles);
  Cursor<S::kTokens, S::kCanShare> at;
  at.start(args, seqs, record);
  int place = warp;
  Queries<S> q;
  Running<S> run;
  Unit unit = unit_at<S>(args, at, seqs, num_tiles);
  find_origin(args, unit);
  load_queries(q, query_row<S>(args, unit), unit.num_heads, lane);
  while (true) {
    convert_queries(q, args.is_bf16);
    run.reset();
    for (; place < at.end; place += S::kWarps) {
      run_tile(args, q, run, fetcher, ahead.tiles[0], ring, at.visible(args, place), lane);
      ahead.shift(fetcher.locate(args, behind));
      behind += S::kWarps;
    }
    const Unit done = unit;
    const int begin = at.begin;
    const int end = at.end;
    if (end < num_tiles) {  // the next queries arrive while this unit is finished
      at.next(args, seqs, num_tiles);
      unit = unit_at<S>(args, at, seqs, num_tiles);
      load_queries(q, query_row<S>(args, unit), unit.num_heads, lane);
    }
    finish_unit(space, args, done, begin, end, run);
    if (end == num_tiles) return;
  }
}

// Without fp8 instructions, widening e4m3 takes more registers than two CTAs an SM leave.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
template <typename S>
constexpr int kMinCtas = S::kFp8 && S::kCanShare ? 1 : S::kCtasPerSm;
#else
template <typename S>
constexpr int kMinCtas = S::kCtasPerSm;
#endif

template <typename S>
__global__ void __launch_bounds__(S::kThreads, kMinCtas<S>)
    decode_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) uint8_t smem[];
  const Record record = load_record(args);
  if (record.num_tiles == 0) {
    ptx::grid_wait();
    ptx::grid_launch();
    return clear_padding<S>(args);
  }
  if (!record.is_prefix) return run_own<S>(args, record, smem);
  if constexpr (S::kCanShare) run_prefix<S>(args, record, smem);
}

}  // namespace srt::cuda::decode
