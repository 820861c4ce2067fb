// How the decode step's work is cut: stages of the ring, units of a phase, items of the attention.
#pragma once

#include <cuda_bf16.h>

#include "attention/kv_fp8.cuh"
#include "common/hopper.cuh"
#include "common/launch.h"
#include "decode_step/decode_step.h"

namespace srt::cuda::decode_step {

using bf16 = __nv_bfloat16;

constexpr int kWarps = 8;      // consumers; a third warpgroup holds producers and the janitor
constexpr int kProducers = 2;  // warps
constexpr int kConsumers = kWarps * 32;
constexpr int kThreads = kConsumers + 128;
constexpr int kConsumerRegisters = 208;  // three warpgroups start with 168 each
constexpr int kProducerRegisters = 88;
constexpr int kRows = kMaxDecodeStepRows;
constexpr int kTileRows = 8;                     // rows of a weight in one stage
constexpr int kChunk = 1024;                     // values of k in one stage
constexpr int kStep = 32;                        // values of k that a warp takes at once
constexpr int kSteps = kChunk / kStep / kWarps;  // of a warp in a stage
constexpr int kGroupSums = 64;  // tiles times rows of x whose sums stand in shared memory together
constexpr int kTileTokens = 128;  // of KV: 16 a warp
constexpr int kMaxGroup = 8;      // query heads of a KV head
constexpr int kMaxParts = 32;     // of a KV head
constexpr int kPartSlots = 64;    // of a head: as many for each row as there are rows to share them
// Stages that the producer has under way at most: enough to keep HBM busy.
constexpr int kInFlight = 3;
constexpr int kStageBytes = 18432;
constexpr int kMaxLayers = 96;  // whose addresses fit into shared memory
constexpr int kSmemBytes = 227 * 1024;

// Bytes between the rows of a stage: 64 more than a multiple of 128, so that 16-byte reads of two
// rows by eight lanes meet no bank twice.
__host__ __device__ constexpr int weight_stride(int columns) {
  return round_up(columns * 2, 128) + 64;
}
static_assert(kTileRows * weight_stride(kChunk) <= kStageBytes);

// kKvBytes: of a value in the pool, 2 (bf16) or 1 (fp8).
template <int kHeadDimV, int kKvBytesV>
struct Layout {
  static constexpr int kHeadDim = kHeadDimV;
  static constexpr int kKvBytes = kKvBytesV;
  static constexpr int kKvStride = kHeadDim * kKvBytes + 16;  // ldmatrix meets no bank twice
  static constexpr int kStageTokens = kHeadDim * kKvBytes <= 128 ? 128 : 64;
  static constexpr int kKvStages = kTileTokens / kStageTokens;  // of K, and as many of V
  static constexpr int kAhead = kHeadDim == 64 ? 2 : 1;         // chunks of x that are read early
  static constexpr int kMergeStride = kHeadDim + 4;             // floats
  static constexpr int kProductFloats = kWarps * (kGroupSums * kTileRows + kRows);
  static constexpr int kMergeFloats = kWarps * kMaxGroup * (kMergeStride + 2);
  static constexpr int kReduceBytes =
      4 * (kProductFloats > kMergeFloats ? kProductFloats : kMergeFloats);
  static constexpr int kFixedBytes =
      kReduceBytes + kMaxLayers * sizeof(DecodeStepLayer) + 1024;  // barriers, the split, and room
  static constexpr int kStages = (kSmemBytes - kFixedBytes) / kStageBytes;
  static_assert(kStageTokens * kKvStride <= kStageBytes);
};

// How each row's KV is cut; the same in every CTA.
struct Splits {
  int len[kRows];
  int num[kRows];        // parts of a KV head
  int tiles[kRows];      // of a part
  int first[kRows + 1];  // the row's first item: items go row by row, head by head, part by part
  int turn;              // the copy that the first layer writes
};

template <int kStages>
struct Barriers {
  uint64_t full[kStages];
  uint64_t empty[kStages];
};

// The pieces of the workspace, and the rest of what the kernel is told.
struct Args {
  DecodeStepParams p;
  unsigned* ended;  // CTAs that are done
  unsigned* turn;   // which of three copies the launch's first layer writes
  // What phases hand over: three copies, [3, kRows, columns]. A layer writes one while the next
  // layer's is emptied; what is empty has not been written yet, so readers need no other sign.
  bf16* qkv;         // (num_q_heads + 2 num_kv_heads) head_dim
  bf16* attn;        // num_q_heads head_dim
  bf16* mid;         // hidden: the stream after o
  bf16* act;         // intermediate
  bf16* out;         // hidden: the stream after down
  float* parts;      // [3, rows, num_q_heads, max_parts, head_dim]
  float* parts_lse;  // [3, rows, num_q_heads, max_parts], of base 2
  int max_parts;
  int inverse_rows;  // 65536 / num_rows + 1, for quotients of small numbers
  // How fp8 of the pool becomes bf16, see Fp8Widening.
  int kv_shift;
  uint32_t kv_factors;
};
constexpr int kCopies = 3;
enum Phase : int { kQkv, kAttend, kO, kGateUp, kDown, kNumPhases };

// The units of a phase go round the CTAs, from where the phase before has left off; in every layer
// alike, so that a value of y always has the same owner.
struct Share {
  int first;  // this CTA's first unit; the others are gridDim.x apart
  int total;

  __device__ __forceinline__ bool any() const { return first < total; }
  __device__ __forceinline__ int count() const {
    return any() ? (total - first - 1) / static_cast<int>(gridDim.x) + 1 : 0;
  }
  __device__ __forceinline__ int unit(int i) const {
    return first + i * static_cast<int>(gridDim.x);
  }
};

struct Deal {
  int next = 0;  // the CTA that gets the next phase's first unit

  __device__ __forceinline__ Share deal(int total) {
    const int ctas = static_cast<int>(gridDim.x);
    int first = static_cast<int>(blockIdx.x) - next;
    if (first < 0) first += ctas;
    next = (next + total) % ctas;
    return {first, total};
  }
};

// One matrix product of a layer: y [rows, n] = x [rows, k] w^T in units of 8 columns (gated: 8 of
// gate and 8 of up).
struct Product {
  const bf16* w;
  int n;  // columns of y
  int k;
  bool gated;

  __device__ __forceinline__ int units() const { return n / kTileRows; }
  __device__ __forceinline__ int tiles_per_unit() const { return gated ? 2 : 1; }
  __device__ __forceinline__ int group_units(int rows) const {
    return kGroupSums / rows / tiles_per_unit();
  }
  __device__ __forceinline__ int chunks() const { return div_up(k, kChunk); }
  __device__ __forceinline__ int columns(int chunk) const {
    return min(k - chunk * kChunk, kChunk);
  }
};

__device__ __forceinline__ Product product_of(const DecodeStepShape& s, const DecodeStepLayer& l,
                                              Phase phase) {
  const int q = s.num_q_heads * s.head_dim;
  const int kv = s.num_kv_heads * s.head_dim;
  switch (phase) {
    case kQkv:
      return {static_cast<const bf16*>(l.qkv), q + 2 * kv, s.hidden, false};
    case kO:
      return {static_cast<const bf16*>(l.o), s.hidden, q, false};
    case kGateUp:
      return {static_cast<const bf16*>(l.gate_up), s.intermediate, s.hidden, true};
    default:
      return {static_cast<const bf16*>(l.down), s.hidden, s.intermediate, false};
  }
}

// One part of one KV head of one row.
struct Item {
  int row;
  int kv_head;
  int part;
  int begin;  // tiles
  int end;
};

__device__ __forceinline__ Item item_at(const Splits& s, int num_rows, int i) {
  Item item;
  item.row = 0;
  while (item.row + 1 < num_rows && i >= s.first[item.row + 1]) ++item.row;
  const int j = i - s.first[item.row];
  item.kv_head = j / s.num[item.row];
  item.part = j - item.kv_head * s.num[item.row];
  item.begin = item.part * s.tiles[item.row];
  item.end = min(item.begin + s.tiles[item.row], div_up(s.len[item.row], kTileTokens));
  return item;
}

// One warp, before the others read `s`.
__device__ __forceinline__ void plan_splits(const Args& a, Splits& s) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int rows = a.p.num_rows;
  const int len = lane < rows ? a.p.seq_lens[lane] : 0;
  const int tiles = div_up(len, kTileTokens);
  int all = tiles;
#pragma unroll
  for (int o = 16; o > 0; o /= 2) all += __shfl_xor_sync(0xffffffffu, all, o);
  const int fair = div_up(all * a.p.shape.num_kv_heads, static_cast<int>(gridDim.x));
  const int span = max(max(1, fair), div_up(tiles, a.max_parts));
  const int num = max(1, div_up(tiles, span));
  int first = lane < rows ? num * a.p.shape.num_kv_heads : 0;
#pragma unroll
  for (int o = 1; o < 32; o *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, first, o);
    if (lane >= o) first += before;
  }
  if (lane < rows) {
    s.len[lane] = len;
    s.num[lane] = num;
    s.tiles[lane] = span;
    s.first[lane + 1] = first;
  }
  if (lane == 0) {
    s.first[0] = 0;
    s.turn = static_cast<int>(*a.turn);
  }
}

// Where a consumer or the producer stands in the ring.
template <int kStages>
struct Ring {
  uint32_t stages;  // shared addresses
  uint32_t full;
  uint32_t empty;
  int at = 0;
  uint32_t round = 0;

  __device__ __forceinline__ uint32_t stage() const { return stages + at * kStageBytes; }
  __device__ __forceinline__ uint32_t full_bar() const { return full + 8 * at; }
  __device__ __forceinline__ uint32_t empty_bar() const { return empty + 8 * at; }
  __device__ __forceinline__ void next() {
    if (++at == kStages) {
      at = 0;
      round ^= 1;
    }
  }
};

}  // namespace srt::cuda::decode_step
