// The consumers' matrix products: y = x w^T for up to 8 rows of x, the norm before and what follows
// the product folded in.
//
// The rows of x are the A side of m16n8k16, 8 rows of w its B side. The eight warps share every
// stage along k; a lane reads 16 bytes of a row at once, so the order of k within 32 values is the
// same permutation on both sides. Each warp keeps its sums of a group of tiles in shared memory
// until all of k is done; then they are added over the warps, in their order.
#pragma once

#include "decode_step/slices.cuh"

namespace srt::cuda::decode_step {

// A tile's stage into registers; the producer may refill it. `at` is where the lane's values of
// step 0 lie in a stage. Beyond a short chunk's columns, where x is zero, stand zeros or other
// weights: the ring begins with zeros, and KV is erased after use.
template <int kStages>
__device__ __forceinline__ void take_stage(Ring<kStages>& ring, Slice& w, uint32_t at) {
  wait(ring.full_bar(), ring.round);
  at += ring.stage();
#pragma unroll
  for (int i = 0; i < kSteps; ++i) w[i] = ptx::load_shared_16(at + i * kWarps * kStep * 2);
  hopper::barrier_arrive(ring.empty_bar());  // each lane for itself
  ring.next();
}

// The lane's row of x by columns 2 quad and 2 quad + 1 of the tile. Half of the products' rows are
// zero; four chains, so that no product waits long for the one before.
__device__ __forceinline__ float2 multiply(const Slice& x, const Slice& w) {
  float chain[4][4] = {};
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const uint32_t lo[4] = {x[i].x, 0, x[i].y, 0};
    const uint32_t hi[4] = {x[i].z, 0, x[i].w, 0};
    ptx::mma_m16n8k16<bf16>(chain[i % 2 * 2], lo, w[i].x, w[i].y);
    ptx::mma_m16n8k16<bf16>(chain[i % 2 * 2 + 1], hi, w[i].z, w[i].w);
  }
  return make_float2(chain[0][0] + chain[1][0] + (chain[2][0] + chain[3][0]),
                     chain[0][1] + chain[1][1] + (chain[2][1] + chain[3][1]));
}

// What the warps share: sums [kWarps][tiles of a group][rows of x][kTileRows], and squares.
struct Reduction {
  float* sums;
  float* squares;  // [kWarps][kRows]
  int rows;
  int warp_floats;  // of a warp's sums

  __device__ __forceinline__ Reduction(uint8_t* smem, int num_rows)
      : sums(reinterpret_cast<float*>(smem)),
        squares(sums + kWarps * kGroupSums * kTileRows),
        rows(num_rows),
        warp_floats(kGroupSums / num_rows * num_rows * kTileRows) {}

  __device__ __forceinline__ float* own(int tile, const Lane& lane) const {
    return sums + lane.warp * warp_floats + (tile * rows + lane.row) * kTileRows + 2 * lane.quad;
  }
  // Over the warps, from a place in the first warp's sums.
  __device__ __forceinline__ float total(int place) const {
    const float* const first = sums + place;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += first[w * warp_floats];
    return sum;
  }
  __device__ __forceinline__ float square_sum(int row) const {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += squares[w * kRows + row];
    return sum;
  }
};

__device__ __forceinline__ float rounded_bf16(float x) {
  return __bfloat162float(__float2bfloat16_rn(x));
}

// Where a product's input comes from and its output goes.
struct Route {
  const bf16* x;     // [rows, k]
  const bf16* norm;  // [k]; null: x goes in as it is
  const bf16* add;   // what is added: a row for all (bias), or [rows, n] (residual); null: nothing
  bf16* y;           // [rows, n]
  bool residual;
  bool awaits_x;  // other CTAs may still be writing x
  bool awaits_add;
};

// `copy`: of this layer; the layer before wrote the copy before.
__device__ __forceinline__ Route route_of(const Args& a, const DecodeStepLayer& layer, Phase phase,
                                          int copy, int layer_idx) {
  const DecodeStepShape& s = a.p.shape;
  bf16* const stream = static_cast<bf16*>(a.p.x);
  const int before = copy == 0 ? kCopies - 1 : copy - 1;
  const bool is_first = layer_idx == 0;
  const int wide = (s.num_q_heads + 2 * s.num_kv_heads) * s.head_dim;
  const bf16* const in = is_first ? stream : a.out + before * kRows * s.hidden;
  bf16* const mid = a.mid + copy * kRows * s.hidden;
  bf16* const act = a.act + copy * kRows * s.intermediate;
  const bf16* const attn = a.attn + copy * kRows * s.num_q_heads * s.head_dim;
  switch (phase) {
    case kQkv:
      return {in,
              static_cast<const bf16*>(layer.attn_norm),
              static_cast<const bf16*>(layer.qkv_bias),
              a.qkv + copy * kRows * wide,
              false,
              !is_first,
              false};
    case kO:
      return {attn, nullptr, in, mid, true, true, !is_first};
    case kGateUp:
      return {mid, static_cast<const bf16*>(layer.mlp_norm), nullptr, act, false, true, false};
    default:
      return {act,  nullptr,
              mid,  layer_idx + 1 == s.num_layers ? stream : a.out + copy * kRows * s.hidden,
              true, true,
              true};
  }
}

// The values of y that a thread will finish in a group of units: i is column i % 8 of row
// i / 8 % rows of unit i / 8 / rows. Set up early, while others are waited for.
struct Values {
  static constexpr int kCount = kGroupSums * kTileRows / kConsumers;
  int row[kCount];         // -1: there is none
  int place[kCount];       // in y
  int source[kCount];      // of what is added
  int sum[kCount];         // in a warp's sums
  uint16_t added[kCount];  // bf16

  __device__ __forceinline__ Values(const Args& a, const Route& route, const Product& product,
                                    const Share& share, int begin, int units) {
    const int rows = a.p.num_rows;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int i = static_cast<int>(threadIdx.x) + j * kConsumers;
      const int unit = (i / kTileRows * a.inverse_rows) >> 16;
      const int column = share.unit(begin + unit) * kTileRows + i % kTileRows;
      row[j] = unit < units ? i / kTileRows - unit * rows : -1;
      place[j] = row[j] * product.n + column;
      source[j] = route.residual ? place[j] : column;
      sum[j] = (unit * product.tiles_per_unit() * rows + row[j]) * kTileRows + i % kTileRows;
    }
  }

  // What is added, if it has been written.
  __device__ __forceinline__ void load(const Route& route) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      added[j] = 0;
      if (route.add != nullptr && row[j] >= 0) added[j] = load_fresh_2(route.add + source[j]);
    }
  }

  __device__ __forceinline__ void finish(const Route& route, const Product& product,
                                         const Reduction& red, float eps) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (row[j] < 0) continue;
      float scale = 1.0f;
      if (route.norm != nullptr)
        scale = rsqrtf(red.square_sum(row[j]) / static_cast<float>(product.k) + eps);
      float v = red.total(sum[j]) * scale;
      if (product.gated) {
        const float gate = rounded_bf16(v);
        const float up = rounded_bf16(red.total(sum[j] + red.rows * kTileRows) * scale);
        v = rounded_bf16(gate / (1.0f + __expf(-gate))) * up;
      }
      if (route.residual) v = rounded_bf16(v);
      Patience patience;
      while (route.awaits_add && added[j] == (kEmpty & 0xffffu)) {
        added[j] = load_fresh_2(route.add + source[j]);
        patience.lose();
      }
      publish(route.y + place[j],
              __float2bfloat16_rn(v + __bfloat162float(__ushort_as_bfloat16(added[j]))));
    }
  }
};

// One chunk of a group's tiles: adds to the warp's sums, or begins them.
template <int kStages>
__device__ __forceinline__ void run_tiles(Ring<kStages>& ring, const Slice& x, int tiles,
                                          int columns, bool begins, const Reduction& red,
                                          const Lane& lane) {
  const bool has_row = lane.row < red.rows;
  const uint32_t at = lane.row * weight_stride(columns) + lane.column(0) * 2;
  auto* own = reinterpret_cast<float2*>(red.own(0, lane));
  const int next_tile = red.rows * kTileRows / 2;
  const auto finish = [&](float2 sum) {
    if (has_row) {
      if (!begins) sum = make_float2(own->x + sum.x, own->y + sum.y);
      *own = sum;
    }
    own += next_tile;
  };
#pragma unroll 1
  for (; tiles > 1; tiles -= 2) {
    Slice w[2];
    take_stage(ring, w[0], at);
    take_stage(ring, w[1], at);
    const float2 first = multiply(x, w[0]);
    const float2 second = multiply(x, w[1]);
    finish(first);
    finish(second);
  }
  if (tiles > 0) {
    Slice w;
    take_stage(ring, w, at);
    finish(multiply(x, w));
  }
}

template <typename L>
__device__ __forceinline__ void run_product(Ring<L::kStages>& ring, const Args& a,
                                            const Product& product, const Share& share,
                                            const Route& route, uint8_t* smem) {
  const Lane lane;
  const int rows = a.p.num_rows;
  const int count = share.count();
  const int step = product.group_units(rows);
  const int chunks = product.chunks();
  const Reduction red(smem, rows);
  Slice norm;  // read early: no kernel of the step writes it
  if (route.norm != nullptr) load_weight_slice(norm, route.norm, product.columns(0), lane);
#pragma unroll 1
  for (int begin = 0; begin < count; begin += step) {
    const int units = min(count - begin, step);
    float squares[4] = {};
    Values values(a, route, product, share, begin, units);
    constexpr int kAhead = L::kAhead;
    Slice x[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i < chunks)
        load_slice(x[i], route.x + i * kChunk, product.k, rows, product.columns(i), lane);
    }
    values.load(route);
#pragma unroll 1
    for (int first = 0; first < chunks; first += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int chunk = first + i;
        if (chunk >= chunks) break;
        Slice now;
#pragma unroll
        for (int j = 0; j < kSteps; ++j) now[j] = x[i][j];
        const int later = chunk + kAhead;
        if (route.awaits_x)
          await_slice(now, route.x + chunk * kChunk, product.k, rows, product.columns(chunk), lane);
        if (later < chunks)
          load_slice(x[i], route.x + later * kChunk, product.k, rows, product.columns(later), lane);
        if (route.norm != nullptr) {
          weigh(now, norm, squares);
          const int other = chunk + 1 < chunks ? chunk + 1 : 0;
          if (chunks > 1)
            load_weight_slice(norm, route.norm + other * kChunk, product.columns(other), lane);
        }
        run_tiles(ring, now, units * product.tiles_per_unit(), product.columns(chunk), chunk == 0,
                  red, lane);
      }
    }
    if (lane.quad == lane.row / 2)
      red.squares[lane.warp * kRows + lane.row] = lane.row % 2 == 0 ? squares[0] : squares[1];
    consumer_barrier();  // all warps' sums can be read
    values.finish(route, product, red, a.p.eps);
    consumer_barrier();  // they have been read, and y is written
  }
}

}  // namespace srt::cuda::decode_step
