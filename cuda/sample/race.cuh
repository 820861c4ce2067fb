// The exponential race over a row: docs/contracts.md section 3.1, step 7.
#pragma once

#include "common/ptx.cuh"
#include "sample/philox.cuh"
#include "sample/row.cuh"
#include "step/message.cuh"

namespace srt::cuda {

// A block's chunk in shared memory, edited and over temperature.
struct SharedRow {
  static constexpr bool kFiltered = true;  // races look at floor, least and min_p
  static constexpr int kAhead = 1;

  const float* x;
  Chunk chunk;

  __device__ __forceinline__ float value(float raw) const { return raw; }

  template <int kVectors = 1, typename F>
  __device__ __forceinline__ void walk(F&& f) const {
    for (int at = chunk.begin + static_cast<int>(threadIdx.x) * kRowLane; at < chunk.end;
         at += kRowThreads * kRowLane) {
      float v[kRowLane];
      load_floats(x + (at - chunk.begin), v);
#pragma unroll
      for (int j = 0; j < kRowLane; ++j) {
        if (at + j >= chunk.end) v[j] = -INFINITY;
      }
      f(at, v);
    }
  }
};

// A chunk of raw logits where they lie: walked over without a copy.
template <typename T>
struct StreamedRow {
  static constexpr bool kFiltered = false;
  static constexpr int kAhead = kStreamAhead<T>;

  const T* row;
  Chunk chunk;
  float temperature;

  __device__ __forceinline__ float value(float raw) const { return __fdiv_rn(raw, temperature); }

  template <int kVectors = 2, typename F>
  __device__ __forceinline__ void walk(F&& f) const {
    for_logits<kVectors>(row, chunk, f);
  }
};

// What a race needs to know of its row.
struct RaceTerms {
  float max_raw;  // the largest value as the row stores it
  float max;      // ... and over temperature
  float rate;     // log2(e), over temperature where the row stores raw logits
  float floor;    // only values above run (stored values)
  float least;    // only values that reach it run (stored values)
  float min_p;    // only weights that reach it run
  bool wants_mass;
};

// A racer: its score exp(x - max) / exponential, and its stored value.
struct Racer {
  double score;
  float x;
  int token;
};

struct RaceResult {
  Racer winner;
  double mass;  // of the tokens in the race, exp(x - max) each; where asked for
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

template <typename Row>
__device__ __forceinline__ float row_max(const Row& row, ClusterReducer& cluster) {
  float largest = -INFINITY;
  row.template walk<Row::kAhead>([&](int, const float (&x)[kRowLane]) {
#pragma unroll
    for (int j = 0; j < kRowLane; ++j) largest = fmaxf(largest, x[j]);
  });
  return cluster.reduce(largest, Max{});
}

__device__ __forceinline__ bool runs(const RaceTerms& terms, float x) {
  return x > terms.floor && x >= terms.least;
}

// The race among the tokens that run. `bound` (shared) is a score that the winner surely reaches: a
// weight over v is at least the score, so that most tokens need neither logarithm nor division.
template <typename Row>
__device__ __forceinline__ RaceResult race(const Row& row, const RaceTerms& terms,
                                           const message::SamplingRecord& record, float* bound,
                                           ClusterReducer& cluster) {
  const uint2 key{record.seed_lo, record.seed_hi};
  // For the approximations: of 2^x, and of x / temperature, whose error grows with x.
  const float slack = 1.0f - 1e-4f - 5e-7f * fabsf(terms.max);
  __syncthreads();  // the last race has been read
  if (threadIdx.x == 0) *bound = kSureScore;
  __syncthreads();
  RaceResult mine{{-1.0, 0.0f, kNoToken}, 0.0};
  row.walk([&](int at, const float (&x)[kRowLane]) {
    if constexpr (Row::kFiltered) {
      bool any = false;
#pragma unroll
      for (int j = 0; j < kRowLane; ++j) any |= runs(terms, x[j]);
      if (!any) return;
    }
    const unsigned block = static_cast<unsigned>(at) / 4;
    const uint4 low = philox(block, record.position, key);
    const uint4 high = philox(block + 1, record.position, key);
    const unsigned words[kRowLane] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    const float reach = *static_cast<volatile float*>(bound) * slack;
#pragma unroll
    for (int j = 0; j < kRowLane; ++j) {
      if constexpr (Row::kFiltered) {
        if (!runs(terms, x[j])) continue;
        if (terms.wants_mass) mine.mass += expf(x[j] - terms.max);
      }
      const float weight = ptx::exp2_approx((x[j] - terms.max_raw) * terms.rate);
      if (!(weight >= reach * uniform_below(words[j]))) continue;
      const float exact = expf(row.value(x[j]) - terms.max);
      if (Row::kFiltered && exact < terms.min_p) continue;
      const double score = static_cast<double>(exact) / static_cast<double>(exponential(words[j]));
      mine.winner = Faster{}(mine.winner, Racer{score, x[j], at + j});
      // Scores are positive: their order is that of their bits.
      atomicMax(reinterpret_cast<int*>(bound), __float_as_int(static_cast<float>(score)));
    }
  });
  return cluster.reduce(mine, Faster{});
}

}  // namespace srt::cuda
