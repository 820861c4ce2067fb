// The two latent kernels: decode, split over the step's plan, and extend, a tile of rows a block.
//
// Bound     decode: HBM, every visible row of the pool once a head block, up to about 100 heads;
//           beyond, and in extends, the tensor cores: 2 * (576 + 512) * visible (query, key) pairs
//           * num_q_heads.
#pragma once

#include "attention/decode_kernel.cuh"
#include "attention/extend_tile.cuh"
#include "attention/latent_tile.cuh"

namespace srt::cuda::latent {

// A Tile as decode's join of partial results sees it.
template <typename Tile>
struct Shape {
  static constexpr int kHeadDim = kLatentValue;
  static constexpr int kHeadTiles = Tile::kRows / 8;
  static constexpr int kTokens = Tile::kKeys;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr bool kCanShare = false;
  static constexpr int kWarps = Tile::kWarps;
  static constexpr int kCtasPerSm = Tile::kCtasPerSm;
};

// What a block copies next: runs ahead of the arithmetic through its units.
template <typename Tile>
struct Fetcher {
  decode::Cursor<Tile::kKeys, false> at;
  const int32_t* seqs;
  int num_tiles;

  struct Rows {
    int first;
    int count;
    int page;
  };
  __device__ __forceinline__ Rows locate(const Tile& tile, const decode::Args& args, int place) {
    if (place >= num_tiles) return {0, 0, 0};
    while (place >= at.end) at.next(args, seqs, num_tiles);
    Rows rows;
    rows.first = (at.tile0 + place - at.begin) * Tile::kKeys;
    rows.count = min(at.len - rows.first, Tile::kKeys);
    rows.page = tile.look_up(args.page_table + at.row * args.table_stride, args.log2_page,
                             rows.first, rows.count);
    return rows;
  }
};

// A unit's result: to its place, or to the unit's other parts, which the last to arrive joins.
template <typename T, typename Tile>
__device__ __forceinline__ void finish_unit(Tile& tile, const decode::Args& args,
                                            const decode::Unit& unit) {
  using S = Shape<Tile>;
  tile.finish_sums();
  if (unit.parts == 1) {
    auto* out = static_cast<T*>(args.out) + unit.token * args.out_stride +
                static_cast<int64_t>(unit.head) * kLatentValue;
    tile.for_each_pair([&](int row, int column, float x, float y) {
      if (row >= unit.num_heads) return;
      const float norm = __fdividef(args.v_scale, tile.factors()[row]);
      *reinterpret_cast<uint32_t*>(out + row * kLatentValue + column) =
          ptx::pack_pair<T>(x * norm, y * norm);
    });
    return;
  }
  const int slot = decode::part_slot(blockIdx.x, unit.origin);
  tile.for_each_pair([&](int row, int column, float x, float y) {
    if (row >= unit.num_heads) return;
    auto* to = reinterpret_cast<float*>(decode::part_row<S>(args, slot, row));
    *reinterpret_cast<float2*>(to + column) = make_float2(x, y);
  });
  if (static_cast<int>(threadIdx.x) % Tile::kRowThreads == 0)
    args.part_ml[slot * Tile::kRows + Tile::row()] =
        make_float2(tile.max * args.exp_scale, tile.sum);
  if (decode::arrive_last(args.arrivals + unit.origin, unit.parts))
    decode::join_parts<S>(args, unit);
}

template <typename T, int kRows, bool kFp8>
__global__ void __launch_bounds__(256, kRows == 16 ? 2 : 1)
    decode_kernel(const __grid_constant__ decode::Args args, KvDtype dtype) {
  using Rows = Tile<T, kRows, kFp8>;
  using S = Shape<Rows>;
  extern __shared__ __align__(128) unsigned char smem[];
  const int32_t* seqs = args.message + args.message[message::kOffSeqs];
  const decode::Record record = decode::load_record(args);
  const int num_tiles = record.num_tiles;
  ptx::grid_wait();
  ptx::grid_launch();
  decode::clear_padding<S>(args);
  if (num_tiles == 0) return;

  Rows tile(smem);
  Fetcher<Rows> fetcher{.seqs = seqs, .num_tiles = num_tiles};
  fetcher.at.start(args, seqs, record);
  decode::Cursor<Rows::kKeys, false> at = fetcher.at;
  constexpr int kAhead = Rows::kStages - 1;
  for (int i = 0; i < kAhead; ++i) {
    const auto rows = fetcher.locate(tile, args, i);
    tile.copy_keys(args.k_pool, rows.page, args.log2_page, rows.first, rows.count, i);
  }
  auto next = fetcher.locate(tile, args, kAhead);
  int stage = 0;
  for (int place = 0; place < num_tiles;) {
    decode::Unit unit = decode::unit_at<S>(args, at, seqs, num_tiles);
    if (place == 0) decode::find_origin(args, unit);
    const auto* q = static_cast<const T*>(args.q) + unit.token * args.q_stride +
                    static_cast<int64_t>(unit.head) * kLatentDim;
    tile.load_queries(unit.num_heads, [&](int row) { return q + row * kLatentDim; });
    tile.reset();
    for (; place < at.end; ++place) {
      ptx::cp_async_wait<kAhead - 1>();
      __syncthreads();  // the tile has arrived, the queries stand, nobody reads the last tile
      tile.copy_keys(args.k_pool, next.page, args.log2_page, next.first, next.count,
                     (stage + kAhead) % Rows::kStages);
      next = fetcher.locate(tile, args, place + kAhead + 1);
      tile.run(stage, dtype, at.visible(args, place).y, args.exp_scale);
      stage = stage + 1 == Rows::kStages ? 0 : stage + 1;
    }
    finish_unit<T>(tile, args, unit);
    if (place < num_tiles) at.next(args, seqs, num_tiles);
  }
}

// Rows of an extend tile: tokens, and within each the heads of the block.
template <typename T, bool kFp8>
__global__ void __launch_bounds__(256, 1)
    extend_kernel(const __grid_constant__ ExtendParams p, int heads_per_block) {
  using Rows = Tile<T, kLatentTileRows, kFp8>;
  extern __shared__ __align__(128) unsigned char smem[];
  if (static_cast<int>(blockIdx.x) >= p.plan[0]) return;
  const ExtendTile work = planned_tile(p, static_cast<int>(blockIdx.x));
  const int first_head = work.kv_head * heads_per_block;
  const int heads = min(heads_per_block, p.num_q_heads - first_head);
  const int num_rows = work.num_tokens * heads;
  const int log2_page = p.kv.log2_page_size;
  const float scale_log2 = p.scoring.scale * (kFp8 ? p.kv.k_scale : 1.0f) * kLog2e;
  const auto* pool = static_cast<const char*>(p.kv.k);

  Rows tile(smem);
  tile.reset();
  const int num_keys = work.position + work.num_tokens;  // that the last token sees
  const int num_tiles = div_up(num_keys, Rows::kKeys);
  const auto count = [&](int n) { return min(num_keys - n * Rows::kKeys, Rows::kKeys); };
  const auto copy = [&](int n, int page) {
    tile.copy_keys(pool, page, log2_page, n * Rows::kKeys, n < num_tiles ? count(n) : 0,
                   n % Rows::kStages);
  };
  const auto look_up = [&](int n) {
    return n < num_tiles ? tile.look_up(work.pages, log2_page, n * Rows::kKeys, count(n)) : 0;
  };
  constexpr int kAhead = Rows::kStages - 1;
  for (int n = 0; n < kAhead; ++n) copy(n, look_up(n));
  int page = look_up(kAhead);
  tile.load_queries(num_rows, [&](int row) {
    return static_cast<const T*>(p.q) + (work.q_begin + row / heads) * p.q_token_stride +
           static_cast<int64_t>(first_head + row % heads) * kLatentDim;
  });
  const int visible = work.position + Rows::row() / heads + 1;
  for (int n = 0; n < num_tiles; ++n) {
    ptx::cp_async_wait<kAhead - 1>();
    __syncthreads();  // the tile has arrived, the queries stand, nobody reads the last tile
    copy(n + kAhead, page);
    page = look_up(n + kAhead + 1);
    tile.run(n % Rows::kStages, p.kv.dtype, visible - n * Rows::kKeys, scale_log2);
  }
  tile.finish_sums();
  const float v_scale = kFp8 ? p.kv.v_scale : 1.0f;
  tile.for_each_pair([&](int row, int column, float x, float y) {
    if (row >= num_rows) return;
    const float norm = __fdividef(v_scale, tile.factors()[row]);
    T* out = static_cast<T*>(p.out) + (work.q_begin + row / heads) * p.out_token_stride +
             static_cast<int64_t>(first_head + row % heads) * kLatentValue;
    *reinterpret_cast<uint32_t*>(out + column) = ptx::pack_pair<T>(x * norm, y * norm);
  });
}

// The specializations of one dtype; each has a source of its own.
template <typename T>
struct Launch {
  template <int kRows, bool kFp8>
  static cudaError_t decode_rows(const decode::Args& args, KvDtype dtype, bool pdl, int num_ctas,
                                 cudaStream_t stream) {
    using Rows = Tile<T, kRows, kFp8>;
    const LaunchShape shape{.grid = dim3(static_cast<unsigned>(num_ctas)),
                            .block = dim3(Rows::kThreads),
                            .smem_bytes = Rows::kSmemBytes,
                            .pdl = pdl};
    return launch(&decode_kernel<T, kRows, kFp8>, shape, stream, args, dtype);
  }

  static cudaError_t decode(const decode::Args& args, KvDtype dtype, bool pdl, int num_ctas,
                            cudaStream_t stream) {
    const bool small = args.heads_per_block <= 16;
    if (dtype == KvDtype::kSame)
      return small ? decode_rows<16, false>(args, dtype, pdl, num_ctas, stream)
                   : decode_rows<64, false>(args, dtype, pdl, num_ctas, stream);
    return small ? decode_rows<16, true>(args, dtype, pdl, num_ctas, stream)
                 : decode_rows<64, true>(args, dtype, pdl, num_ctas, stream);
  }

  template <bool kFp8>
  static cudaError_t extend_rows(const ExtendParams& p, cudaStream_t stream) {
    using Rows = Tile<T, kLatentTileRows, kFp8>;
    const LatentBlocks blocks(p.num_q_heads);
    const int64_t items =
        extend_max_items(p.num_tokens, p.num_seqs, 2 * blocks.heads * blocks.count, blocks.count);
    const LaunchShape shape{.grid = dim3(static_cast<unsigned>(items)),
                            .block = dim3(Rows::kThreads),
                            .smem_bytes = Rows::kSmemBytes};
    return launch(&extend_kernel<T, kFp8>, shape, stream, p, blocks.heads);
  }

  static cudaError_t extend(const ExtendParams& p, cudaStream_t stream) {
    return p.kv.dtype == KvDtype::kSame ? extend_rows<false>(p, stream)
                                        : extend_rows<true>(p, stream);
  }
};

}  // namespace srt::cuda::latent
