// One token per row of logits: bias, penalties, masks, temperature, filters and the draw.
//
// Shapes    see SampleParams; vocab up to 8 * 32768 where a row is drawn (not greedy).
// Parallel  a cluster of up to 8 blocks a row, in two kernels, each of which leaves the other's
// rows
//           alone. Plain rows are streamed: greedy ones once, drawn ones twice. Rows with edits or
//           filters go to clusters that walk over them: a block keeps its chunk as float32 in
//           shared memory, so that the row is read once however often it is looked at. That kernel
//           is launched where the host cannot rule such rows out, and ends at once if there are
//           none.
// Bound     HBM: num_rows * vocab * sizeof(dtype). Draws: the 10 rounds of Philox per 4 tokens.
// Numerics  docs/contracts.md section 3.1. No sorting: the race runs over all tokens; a winner that
//           the filters drop gives way to the winner among the strictly likelier, until one is
//           kept. Kept tokens are the likeliest ones, so that is the winner of the race among the
//           kept.
#include <algorithm>

#include "common/ptx.cuh"
#include "sample/edit.cuh"
#include "sample/race.cuh"
#include "sample/sample.h"

namespace srt::cuda {
namespace {

using message::SamplingRecord;

constexpr int kMaxChunkTokens = 32768;
constexpr int kPlainBlocksPerSm = 3;
constexpr int kEditedBlocksPerSm = 2;
constexpr float kLog2e = 1.44269504088896341f;
constexpr int kEdits =
    message::kFlagPenalties | message::kFlagBiased | message::kFlagMaskStops | message::kFlagMasked;

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

// `low`: no pivot lies below. Vectors that do not reach it, which soon is most, need one
// comparison.
__device__ __forceinline__ PivotCounts count_above(const SharedRow& row, float low,
                                                   const float (&pivots)[kPivots],
                                                   ClusterReducer& cluster) {
  PivotCounts mine = {};
  row.walk([&](int, const float (&x)[kRowLane]) {
    float largest = x[0];
#pragma unroll
    for (int i = 1; i < kRowLane; ++i) largest = fmaxf(largest, x[i]);
    if (!(largest >= low)) return;
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
__device__ __forceinline__ float find_top_k(const SharedRow& row, float largest, int k,
                                            ClusterReducer& cluster) {
  unsigned low = to_key(-INFINITY);
  unsigned high = to_key(largest) + 1;
  for (bool first = true; high - low > 1; first = false) {
    unsigned keys[kPivots];
    float pivots[kPivots];
    const unsigned step = max(1u, (high - low) / (kPivots + 1));
#pragma unroll
    for (int j = 0; j < kPivots; ++j) {
      // The first pass looks 32, 16, ... 1/2 below the largest: that is where k values end.
      keys[j] = first ? to_key(largest - 32.0f / static_cast<float>(1 << j))
                      : min(low + static_cast<unsigned>(j + 1) * step, high - 1);
      pivots[j] = from_key(keys[j]);
    }
    const PivotCounts counts = count_above(row, from_key(low), pivots, cluster);
#pragma unroll
    for (int j = 0; j < kPivots; ++j) {
      if (counts.count[j] == k) return pivots[j];
      if (counts.count[j] > k) low = max(low, keys[j]);
      if (counts.count[j] < k) high = min(high, keys[j]);
    }
  }
  return from_key(low);
}

__device__ __forceinline__ double mass_of_kept(const SharedRow& row, const RaceTerms& terms,
                                               ClusterReducer& cluster) {
  double mass = 0.0;
  row.walk([&](int, const float (&x)[kRowLane]) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kRowLane; ++j) {
      if (x[j] >= terms.least) sum += expf(x[j] - terms.max);
    }
    mass += sum;
  });
  return cluster.reduce(mass, Add{});
}

// -inf does not run: exp2_approx makes it 0, which no bound admits.
__device__ __forceinline__ RaceTerms terms_of(float max_raw, float max, float rate) {
  return {max_raw, max, rate, -INFINITY, -INFINITY, 0.0f, false};
}

__device__ __forceinline__ int draw_filtered(const SharedRow& row, const SamplingRecord& record,
                                             int vocab, float* bound, ClusterReducer& cluster) {
  const float largest = row_max(row, cluster);
  if (largest == -INFINITY) return kNoToken;  // everything is masked
  RaceTerms terms = terms_of(largest, largest, kLog2e);
  if ((record.flags & message::kFlagFiltered) == 0)
    return race(row, terms, record, bound, cluster).winner.token;
  terms.min_p = record.min_p;
  if (record.top_k > 0 && record.top_k < vocab)
    terms.least = find_top_k(row, largest, record.top_k, cluster);
  const bool has_top_p = record.top_p < 1.0f;
  const double limit = has_top_p ? record.top_p * mass_of_kept(row, terms, cluster) : 0.0;
  Racer winner = race(row, terms, record, bound, cluster).winner;
  terms.wants_mass = true;
  while (has_top_p && winner.token != kNoToken) {
    terms.floor = winner.x;
    const RaceResult likelier = race(row, terms, record, bound, cluster);
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

// Greedy rows and rows that are drawn from all tokens, as the logits are: nothing is copied.
template <typename T>
__device__ __forceinline__ int choose_plain(const T* row, Chunk chunk, const SamplingRecord& record,
                                            float* bound, ClusterReducer& cluster) {
  if (record.flags & message::kFlagGreedy) {
    Best<float> best{-INFINITY, kNoToken};
    for_logits<kStreamAhead<T>>(
        row, chunk, [&](int at, const float (&x)[kRowLane]) { find_best(at, x, best); });
    return cluster.reduce(best, Better{}).token;
  }
  const StreamedRow<T> streamed{row, chunk, record.temperature};
  const float largest = row_max(streamed, cluster);
  if (largest == -INFINITY) return kNoToken;
  // Division is monotone: the largest over temperature is the largest of all over temperature.
  const RaceTerms terms = terms_of(largest, streamed.value(largest), kLog2e / record.temperature);
  return race(streamed, terms, record, bound, cluster).winner.token;
}

// Rows with edits or filters, in shared memory.
template <typename T>
__device__ __forceinline__ int choose_edited(const SampleParams& p, const T* row, Chunk chunk,
                                             const SamplingRecord& record, float* x, float* bound,
                                             ClusterReducer& cluster) {
  unsigned* const counts = reinterpret_cast<unsigned*>(x + chunk_tokens(p.vocab, cluster_size()));
  const bool greedy = record.flags & message::kFlagGreedy;
  for_logits<2>(row, chunk, [&](int at, const float (&v)[kRowLane]) {
    store_floats(x + (at - chunk.begin), v);
  });
  __syncthreads();  // the chunk is in shared memory
  if (record.flags & kEdits) edit(p, record, x, chunk, counts);
  const SharedRow shared{x, chunk};
  if (greedy) {
    Best<float> best{-INFINITY, kNoToken};
    shared.walk([&](int at, const float (&v)[kRowLane]) { find_best(at, v, best); });
    return cluster.reduce(best, Better{}).token;
  }
  for (int i = static_cast<int>(threadIdx.x); i < chunk.end - chunk.begin; i += kRowThreads)
    x[i] = __fdiv_rn(x[i], record.temperature);
  __syncthreads();  // every value is over temperature
  return draw_filtered(shared, record, p.vocab, bound, cluster);
}

__host__ __device__ constexpr bool is_edited(int flags) {
  return (flags & (kEdits | message::kFlagFiltered)) != 0;
}

// The record of a row, read by all threads of a block; no thread uses the last one any more.
__device__ __forceinline__ void read_record(const SampleParams& p, int index,
                                            SamplingRecord& record) {
  if (threadIdx.x < message::kSamplingWords)
    reinterpret_cast<int*>(&record)[threadIdx.x] =
        p.sampling[index * message::kSamplingWords + static_cast<int>(threadIdx.x)];
  __syncthreads();  // the record is read
}

__device__ __forceinline__ void write_token(const SampleParams& p, int index, int token) {
  if (cluster_rank() != 0 || threadIdx.x != 0) return;
  // Nothing above -inf (or nothing but NaN): token 0, as argmax has it.
  const int chosen = token == kNoToken ? 0 : token;
  p.tokens[index] = chosen;
  p.last_tokens[p.sample_rows[index]] = chosen;
}

template <typename T>
__device__ __forceinline__ const T* row_of(const SampleParams& p, int index) {
  return static_cast<const T*>(p.logits) + index * p.logits_stride;
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads, kPlainBlocksPerSm)
    sample_plain_kernel(const __grid_constant__ SampleParams p) {
  __shared__ ClusterScratch scratch;
  __shared__ SamplingRecord record;
  __shared__ float bound;
  ptx::grid_launch();
  ptx::grid_wait();
  const int index = static_cast<int>(blockIdx.y);
  cluster_arrive();  // this block runs: others may write to it (ClusterReducer waits for them)
  read_record(p, index, record);
  if (is_edited(record.flags)) {
    cluster_wait();
    return;
  }
  ClusterReducer cluster(scratch);
  write_token(p, index,
              choose_plain(row_of<T>(p, index), my_chunk(p.vocab), record, &bound, cluster));
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads, kEditedBlocksPerSm)
    sample_edited_kernel(const __grid_constant__ SampleParams p) {
  extern __shared__ __align__(16) unsigned char dynamic[];
  __shared__ ClusterScratch scratch;
  __shared__ SamplingRecord record;
  __shared__ float bound;
  ptx::grid_launch();
  ptx::grid_wait();
  const int first = static_cast<int>(blockIdx.y);
  const int step = static_cast<int>(gridDim.y);
  const auto flags_of = [&](int index) {
    return reinterpret_cast<const SamplingRecord*>(p.sampling)[index].flags;
  };
  bool any = false;
  for (int i = first + static_cast<int>(threadIdx.x) * step; i < p.num_rows;
       i += kRowThreads * step)
    any = any || is_edited(flags_of(i));
  if (!__syncthreads_or(any)) return;  // so say all blocks of the cluster
  cluster_arrive();                    // this block runs: others may write to it
  ClusterReducer cluster(scratch);
  for (int index = first; index < p.num_rows; index += step) {
    if (!is_edited(flags_of(index))) continue;
    __syncthreads();  // nobody looks at the last row's record any more
    read_record(p, index, record);
    const int token = choose_edited(p, row_of<T>(p, index), my_chunk(p.vocab), record,
                                    reinterpret_cast<float*>(dynamic), &bound, cluster);
    write_token(p, index, token);
  }
}

// Blocks of a plain row: as many as fill the device.
int blocks_per_row(int num_rows) {
  if (compute_capability() < 90) return 1;
  int blocks = kMaxCluster;
  while (blocks > 1 && num_rows * blocks > kPlainBlocksPerSm * num_sms()) blocks /= 2;
  return blocks;
}

cudaError_t sample_plain(const SampleParams& p, cudaStream_t stream) {
  LaunchShape shape{.grid = dim3(1), .block = dim3(kRowThreads), .pdl = p.pdl};
  shape.cluster = blocks_per_row(p.num_rows);
  shape.grid = dim3(static_cast<unsigned>(shape.cluster), static_cast<unsigned>(p.num_rows));
  SRT_DISPATCH_DTYPE(p.dtype, T, { return launch(sample_plain_kernel<T>, shape, stream, p); });
}

cudaError_t sample_edited(const SampleParams& p, cudaStream_t stream) {
  LaunchShape shape{.grid = dim3(1), .block = dim3(kRowThreads), .pdl = p.pdl};
  shape.cluster = compute_capability() < 90 ? 1 : kMaxCluster;
  // A cluster stays within its GPC, whose SMs are no multiple of eight: one in eight stays idle.
  const int blocks = kEditedBlocksPerSm * num_sms();
  const int at_once = shape.cluster == 1 ? blocks : blocks * 7 / 8 / shape.cluster;
  const int clusters = std::min(p.num_rows, std::max(at_once, 1));
  shape.grid = dim3(static_cast<unsigned>(shape.cluster), static_cast<unsigned>(clusters));
  const int tokens = chunk_tokens(p.vocab, shape.cluster);
  if (tokens > kMaxChunkTokens) return cudaErrorInvalidValue;
  shape.smem_bytes = static_cast<size_t>(tokens) * sizeof(float);
  if (p.flags & message::kFlagPenalties) shape.smem_bytes += kCountTokens * sizeof(unsigned);
  SRT_DISPATCH_DTYPE(p.dtype, T, { return launch(sample_edited_kernel<T>, shape, stream, p); });
}

}  // namespace

cudaError_t sample(const SampleParams& p, cudaStream_t stream) {
  if (p.num_rows == 0) return cudaSuccess;
  const cudaError_t e = sample_plain(p, stream);
  return e != cudaSuccess || !is_edited(p.flags) ? e : sample_edited(p, stream);
}

}  // namespace srt::cuda
