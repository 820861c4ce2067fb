// A block's part of one row of logits: what both the sampler and the logprobs walk over.
#pragma once

#include "common/vec.cuh"
#include "sample/cluster.cuh"

namespace srt::cuda {

constexpr int kRowLane = 8;  // logits that a thread takes at once
constexpr int kRowThreads = 256;

// Vectors in flight where a row is only looked at: 64 bytes a thread.
template <typename T>
constexpr int kStreamAhead = 8 / sizeof(T);

// Tokens [begin, end) of a row; chunks are multiples of 32 tokens, later ones may be empty.
struct Chunk {
  int begin;
  int end;
};

__host__ __device__ constexpr int chunk_tokens(int vocab, int num_blocks) {
  return ((vocab + num_blocks - 1) / num_blocks + 31) / 32 * 32;
}

__device__ __forceinline__ Chunk my_chunk(int vocab) {
  const int tokens = chunk_tokens(vocab, cluster_size());
  const int begin = min(cluster_rank() * tokens, vocab);
  return {begin, min(begin + tokens, vocab)};
}

// The value (or score) that leads, and its token. Equal values: the lower token.
template <typename V>
struct Best {
  V value;
  int token;
};

struct Better {
  template <typename V>
  __device__ __forceinline__ Best<V> operator()(const Best<V>& a, const Best<V>& b) const {
    const bool second = b.value > a.value || (b.value == a.value && b.token < a.token);
    return second ? b : a;
  }
};

constexpr int kNoToken = 0x7fffffff;

// Calls f(first token, 8 values) for every 8 tokens of the chunk, -inf beyond its end; reads kAhead
// vectors at once. Rows that are not 16-byte aligned are read one by one.
template <int kAhead, typename T, typename F>
__device__ __forceinline__ void for_logits(const T* row, Chunk chunk, F&& f) {
  constexpr int kStep = kRowThreads * kRowLane;
  const bool aligned = reinterpret_cast<uintptr_t>(row) % 16 == 0;
  for (int base = chunk.begin + static_cast<int>(threadIdx.x) * kRowLane; base < chunk.end;
       base += kAhead * kStep) {
    Vec<T, kRowLane> raw[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int at = base + i * kStep;
      if (aligned && at + kRowLane <= chunk.end) raw[i] = load_vec<kRowLane>(row + at);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int at = base + i * kStep;
      const bool whole = aligned && at + kRowLane <= chunk.end;
      float x[kRowLane];
#pragma unroll
      for (int j = 0; j < kRowLane; ++j) {
        x[j] = -INFINITY;
        if (whole) x[j] = to_float(raw[i][j]);
        if (!whole && at + j < chunk.end) x[j] = to_float(row[at + j]);
      }
      if (at < chunk.end) f(at, x);
    }
  }
}

}  // namespace srt::cuda
