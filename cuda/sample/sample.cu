// One token per row of logits: bias, penalties, masks, temperature, filters and the draw in a
// launch.
//
// Shapes    see SampleParams; vocab up to 8 * 32768 where a row is drawn (not greedy).
// Parallel  a cluster of 8 blocks a row; a block keeps its chunk as float32 in shared memory, so
// that
//           the row is read once however often it is walked over. Plain greedy rows stay in
//           registers.
// Bound     HBM: num_rows * vocab * sizeof(dtype). Draws: the 10 rounds of Philox per 4 tokens.
// Numerics  docs/contracts.md section 3.1. No sorting: the race runs over all tokens; a winner that
//           the filters drop gives way to the winner among the strictly likelier, until one is
//           kept. Kept tokens are the likeliest ones, so that is the winner of the race among the
//           kept.
#include "common/ptx.cuh"
#include "sample/edit.cuh"
#include "sample/philox.cuh"
#include "sample/sample.h"

namespace srt::cuda {
namespace {

using message::SamplingRecord;

constexpr int kMaxChunkTokens = 32768;
constexpr int kEdits =
    message::kFlagPenalties | message::kFlagBiased | message::kFlagMaskStops | message::kFlagMasked;

// What a draw needs to know of a row; x is its part in shared memory, already over temperature.
struct DrawState {
  const float* x;
  Chunk chunk;
  float max;    // of the whole row
  float least;  // top-k: smaller values are out
};

// A racer: its score exp(x - max) / exponential, and its own value.
struct Racer {
  double score;
  float x;
  int token;
};

struct RaceResult {
  Racer winner;
  double mass;  // of the tokens in the race, exp(x - max) each
};

struct Faster {
  __device__ __forceinline__ Racer operator()(const Racer& a, const Racer& b) const {
    const bool second = b.score > a.score || (b.score == a.score && b.token < a.token);
    return second ? b : a;
  }
  __device__ __forceinline__ RaceResult operator()(const RaceResult& a, const RaceResult& b) const {
    return {(*this)(a.winner, b.winner), a.mass + b.mass};
  }
};

template <typename F>
__device__ __forceinline__ void for_values(const DrawState& s, F&& f) {
  for (int at = s.chunk.begin + static_cast<int>(threadIdx.x) * kRowLane; at < s.chunk.end;
       at += kRowThreads * kRowLane) {
    float x[kRowLane];
    load_floats(s.x + (at - s.chunk.begin), x);
#pragma unroll
    for (int j = 0; j < kRowLane; ++j) {
      if (at + j >= s.chunk.end) x[j] = -INFINITY;
    }
    f(at, x);
  }
}

// Order of the keys = order of the floats, zeros being equal.
__device__ __forceinline__ unsigned to_key(float x) {
  const unsigned bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float from_key(unsigned key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

constexpr int kPivots = 7;
struct PivotCounts {
  int count[kPivots];  // values at or above each pivot
};
struct AddCounts {
  __device__ __forceinline__ PivotCounts operator()(const PivotCounts& a,
                                                    const PivotCounts& b) const {
    PivotCounts sum;
#pragma unroll
    for (int j = 0; j < kPivots; ++j) sum.count[j] = a.count[j] + b.count[j];
    return sum;
  }
};

__device__ __forceinline__ PivotCounts count_above(const DrawState& s,
                                                   const float (&pivots)[kPivots],
                                                   ClusterReducer& cluster) {
  PivotCounts mine = {};
  for_values(s, [&](int, const float(&x)[kRowLane]) {
#pragma unroll
    for (int i = 0; i < kRowLane; ++i) {
#pragma unroll
      for (int j = 0; j < kPivots; ++j) mine.count[j] += x[i] >= pivots[j];
    }
  });
  return cluster.reduce(mine, AddCounts{});
}

// A value that exactly the k largest, and their equals, reach: search with 7 pivots a pass.
// Invariant: at least k values reach `low`, fewer than k reach `high`.
__device__ __forceinline__ float find_top_k(const DrawState& s, int k, ClusterReducer& cluster) {
  unsigned low = to_key(-INFINITY);
  unsigned high = to_key(s.max) + 1;
  for (bool first = true; high - low > 1; first = false) {
    unsigned keys[kPivots];
    float pivots[kPivots];
    const unsigned step = max(1u, (high - low) / (kPivots + 1));
#pragma unroll
    for (int j = 0; j < kPivots; ++j) {
      // The first pass looks 32, 16, ... 1/2 below the largest: that is where k values end.
      keys[j] = first ? to_key(s.max - 32.0f / static_cast<float>(1 << j))
                      : min(low + static_cast<unsigned>(j + 1) * step, high - 1);
      pivots[j] = from_key(keys[j]);
    }
    const PivotCounts counts = count_above(s, pivots, cluster);
#pragma unroll
    for (int j = 0; j < kPivots; ++j) {
      if (counts.count[j] == k) return pivots[j];
      if (counts.count[j] > k) low = max(low, keys[j]);
      if (counts.count[j] < k) high = min(high, keys[j]);
    }
  }
  return from_key(low);
}

__device__ __forceinline__ double mass_of_kept(const DrawState& s, ClusterReducer& cluster) {
  double mass = 0.0;
  for_values(s, [&](int, const float(&x)[kRowLane]) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kRowLane; ++j) sum += x[j] >= s.least ? expf(x[j] - s.max) : 0.0f;
    mass += sum;
  });
  return cluster.reduce(mass, Add{});
}

// The race among kept tokens above `floor`, and their mass. `bound` (shared) is a score that the
// winner surely reaches: a weight over v is at least the score, so most tokens need no logarithm.
__device__ __forceinline__ RaceResult race(const DrawState& s, const SamplingRecord& record,
                                           float floor, bool wants_mass, float* bound,
                                           ClusterReducer& cluster) {
  constexpr float kLog2e = 1.44269504088896341f;
  constexpr float kSlack = 1.0f - 1e-4f;  // for the approximations
  const uint2 key{record.seed_lo, record.seed_hi};
  const bool filtered = record.flags & message::kFlagFiltered;
  const float min_p = filtered ? record.min_p : 0.0f;
  __syncthreads();  // the last race has been read
  if (threadIdx.x == 0) *bound = kSureScore;
  __syncthreads();
  RaceResult mine{{-1.0, 0.0f, kNoToken}, 0.0};
  for_values(s, [&](int at, const float(&x)[kRowLane]) {
    bool runs = false;
#pragma unroll
    for (int j = 0; j < kRowLane; ++j) runs |= x[j] > floor && x[j] >= s.least;
    if (!runs) return;
    const uint4 words[2] = {philox(static_cast<unsigned>(at) / 4, record.position, key),
                            philox(static_cast<unsigned>(at) / 4 + 1, record.position, key)};
    const float reach = *static_cast<volatile float*>(bound) * kSlack;
#pragma unroll
    for (int j = 0; j < kRowLane; ++j) {
      if (!(x[j] > floor && x[j] >= s.least)) continue;
      const uint4& four = words[j / 4];
      const unsigned word = j % 4 == 0   ? four.x
                            : j % 4 == 1 ? four.y
                            : j % 4 == 2 ? four.z
                                         : four.w;
      const float weight = ptx::exp2_approx((x[j] - s.max) * kLog2e);
      if (wants_mass) mine.mass += expf(x[j] - s.max);
      if (!(weight >= reach * uniform_approx(word))) continue;
      const float exact = expf(x[j] - s.max);
      if (exact < min_p) continue;
      const Racer racer{static_cast<double>(exact) / static_cast<double>(exponential(word)), x[j],
                        at + j};
      mine.winner = Faster{}(mine.winner, racer);
      // Scores are positive: their order is that of their bits.
      atomicMax(reinterpret_cast<int*>(bound), __float_as_int(static_cast<float>(racer.score)));
    }
  });
  return cluster.reduce(mine, Faster{});
}

__device__ __forceinline__ float row_max(const DrawState& s, ClusterReducer& cluster) {
  float largest = -INFINITY;
  for_values(s, [&](int, const float(&x)[kRowLane]) {
#pragma unroll
    for (int j = 0; j < kRowLane; ++j) largest = fmaxf(largest, x[j]);
  });
  return cluster.reduce(largest, Max{});
}

__device__ __forceinline__ int draw(DrawState& s, const SamplingRecord& record, int vocab,
                                    float* bound, ClusterReducer& cluster) {
  s.max = row_max(s, cluster);
  s.least = -INFINITY;
  if (s.max == -INFINITY) return kNoToken;  // everything is masked
  const bool filtered = record.flags & message::kFlagFiltered;
  if (filtered && record.top_k > 0 && record.top_k < vocab)
    s.least = find_top_k(s, record.top_k, cluster);
  const bool has_top_p = filtered && record.top_p < 1.0f;
  const double limit = has_top_p ? record.top_p * mass_of_kept(s, cluster) : 0.0;
  // exp2_approx(-inf) is 0, which no bound admits: masked tokens do not run.
  Racer winner = race(s, record, -INFINITY, false, bound, cluster).winner;
  while (has_top_p && winner.token != kNoToken) {
    const RaceResult likelier = race(s, record, winner.x, true, bound, cluster);
    if (likelier.mass < limit || likelier.winner.token == kNoToken) break;
    winner = likelier.winner;
  }
  return winner.token;
}

__device__ __forceinline__ void find_best(int at, const float (&x)[kRowLane], Best<float>& best) {
#pragma unroll
  for (int j = 0; j < kRowLane; ++j) {
    if (x[j] > best.value) best = {x[j], at + j};
  }
}

template <typename T>
__device__ __forceinline__ int choose(const SampleParams& p, const SamplingRecord& record, float* x,
                                      unsigned* counts, float* bound, ClusterReducer& cluster) {
  const T* const row =
      static_cast<const T*>(p.logits) + static_cast<int64_t>(blockIdx.y) * p.logits_stride;
  const Chunk chunk = my_chunk(p.vocab);
  const bool greedy = record.flags & message::kFlagGreedy;
  Best<float> best{-INFINITY, kNoToken};
  if (greedy && (record.flags & kEdits) == 0) {
    for_logits(row, chunk, [&](int at, const float(&v)[kRowLane]) { find_best(at, v, best); });
    return cluster.reduce(best, Better{}).token;
  }
  const bool edits = record.flags & kEdits;
  const float temperature = record.temperature;
  for_logits(row, chunk, [&](int at, float(&v)[kRowLane]) {
    if (!greedy && !edits) {
#pragma unroll
      for (int j = 0; j < kRowLane; ++j) v[j] = __fdiv_rn(v[j], temperature);
    }
    store_floats(x + (at - chunk.begin), v);
  });
  __syncthreads();  // the chunk is in shared memory
  if (edits) edit(p, record, x, chunk, counts);
  DrawState state{x, chunk, 0.0f, 0.0f};
  if (greedy) {
    for_values(state, [&](int at, const float(&v)[kRowLane]) { find_best(at, v, best); });
    return cluster.reduce(best, Better{}).token;
  }
  if (edits) {
    for (int i = static_cast<int>(threadIdx.x); i < chunk.end - chunk.begin; i += kRowThreads)
      x[i] = __fdiv_rn(x[i], temperature);
    __syncthreads();  // every value is over temperature
  }
  return draw(state, record, p.vocab, bound, cluster);
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    sample_kernel(const __grid_constant__ SampleParams p) {
  extern __shared__ __align__(16) unsigned char dynamic[];
  __shared__ ClusterScratch scratch;
  __shared__ float bound;
  ptx::grid_launch();
  float* const x = reinterpret_cast<float*>(dynamic);
  unsigned* const counts = reinterpret_cast<unsigned*>(x + chunk_tokens(p.vocab, cluster_size()));
  ptx::grid_wait();
  cluster_sync();  // every block runs before its shared memory is written from outside
  const int row = static_cast<int>(blockIdx.y);
  const SamplingRecord record = reinterpret_cast<const SamplingRecord*>(p.sampling)[row];
  ClusterReducer cluster(scratch);
  const int token = choose<T>(p, record, x, counts, &bound, cluster);
  if (cluster_rank() != 0 || threadIdx.x != 0) return;
  // Nothing above -inf (or nothing but NaN): token 0, as argmax has it.
  const int chosen = token == kNoToken ? 0 : token;
  p.tokens[row] = chosen;
  p.last_tokens[p.sample_rows[row]] = chosen;
}

}  // namespace

cudaError_t sample(const SampleParams& p, cudaStream_t stream) {
  if (p.num_rows == 0) return cudaSuccess;
  const int num_blocks = compute_capability() >= 90 ? kMaxCluster : 1;
  const int tokens = chunk_tokens(p.vocab, num_blocks);
  size_t smem = static_cast<size_t>(tokens) * sizeof(float);
  if (tokens > kMaxChunkTokens) return cudaErrorInvalidValue;
  if (p.flags & message::kFlagPenalties) smem += kCountTokens * sizeof(unsigned);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(num_blocks), static_cast<unsigned>(p.num_rows)),
      .block = dim3(kRowThreads),
      .smem_bytes = smem,
      .pdl = p.pdl,
      .cluster = num_blocks};
  SRT_DISPATCH_DTYPE(p.dtype, T, { return launch(sample_kernel<T>, shape, stream, p); });
}

}  // namespace srt::cuda
