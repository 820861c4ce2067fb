// Bias, penalties, stop ids and bitmask on a chunk of a row that lies in shared memory as float32.
#pragma once

#include "sample/row.cuh"
#include "sample/sample.h"
#include "step/message.cuh"

namespace srt::cuda {

constexpr int kCountTokens = 8192;  // tokens whose occurrences are counted at once: 32 KB
constexpr unsigned kInPrompt = 1u << 31;

__device__ __forceinline__ void add_biases(float* x, Chunk chunk, const int* pairs, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kRowThreads) {
    const int token = pairs[2 * i];
    if (token >= chunk.begin && token < chunk.end)
      atomicAdd(&x[token - chunk.begin], __int_as_float(pairs[2 * i + 1]));
  }
}

// Counts how often the history names each token of [first, first + kCountTokens): occurrences in
// the output, and a bit for those in the prompt.
__device__ __forceinline__ void count_history(const SampleParams& p, int seq, int first,
                                              unsigned* counts) {
  const int seq_len = p.seq_lens[seq];
  const int prompt_len = p.prompt_lens[seq];
  const int* const pages = p.page_table + static_cast<int64_t>(p.rows[seq]) * p.max_pages_per_seq;
  for (int pos = static_cast<int>(threadIdx.x); pos < seq_len; pos += kRowThreads) {
    const int64_t page = pages[pos / p.page_size];
    const int token = p.slot_tokens[page * p.page_size + pos % p.page_size] - first;
    if (token < 0 || token >= kCountTokens) continue;
    if (pos < prompt_len) {
      atomicOr(&counts[token], kInPrompt);
    } else {
      atomicAdd(&counts[token], 1u);
    }
  }
}

// Operation by operation as the reference rounds it: no fused multiply-add.
__device__ __forceinline__ float penalize(float x, unsigned count,
                                          const message::SamplingRecord& record) {
  if (count == 0) return x;
  x = x > 0.0f ? __fdiv_rn(x, record.repetition) : __fmul_rn(x, record.repetition);
  const unsigned in_output = count & ~kInPrompt;
  x = __fsub_rn(x, __fmul_rn(record.frequency, __uint2float_rn(in_output)));
  return __fsub_rn(x, in_output > 0 ? record.presence : 0.0f);
}

__device__ __forceinline__ void apply_penalties(const SampleParams& p,
                                                const message::SamplingRecord& record, float* x,
                                                Chunk chunk, unsigned* counts) {
  for (int first = chunk.begin; first < chunk.end; first += kCountTokens) {
    for (int i = static_cast<int>(threadIdx.x); i < kCountTokens; i += kRowThreads) counts[i] = 0;
    __syncthreads();  // zeros before counts
    count_history(p, record.seq, first, counts);
    __syncthreads();  // counts before their use
    const int tokens = min(kCountTokens, chunk.end - first);
    float* const part = x + (first - chunk.begin);
    for (int i = static_cast<int>(threadIdx.x); i < tokens; i += kRowThreads)
      part[i] = penalize(part[i], counts[i], record);
    __syncthreads();  // counts are read before the next zeros
  }
}

__device__ __forceinline__ void mask_stops(float* x, Chunk chunk, const int* ids, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kRowThreads) {
    if (ids[i] >= chunk.begin && ids[i] < chunk.end) x[ids[i] - chunk.begin] = -INFINITY;
  }
}

// Chunks begin at multiples of 32 tokens, so words do not straddle them.
__device__ __forceinline__ void apply_bitmask(float* x, Chunk chunk, const int* words) {
  for (int i = static_cast<int>(threadIdx.x); i < chunk.end - chunk.begin; i += kRowThreads) {
    const int token = chunk.begin + i;
    if ((words[token / 32] >> (token % 32) & 1) == 0) x[i] = -INFINITY;
  }
}

// All edits that the record asks for, in the contract's order. Ends with a barrier.
__device__ __forceinline__ void edit(const SampleParams& p, const message::SamplingRecord& record,
                                     float* x, Chunk chunk, unsigned* counts) {
  const int* const extra = p.message + p.message[message::kOffExtra] + record.extra_offset;
  if (record.flags & message::kFlagBiased)
    add_biases(x, chunk, extra + record.num_stop_ids, record.num_biases);
  __syncthreads();  // biases before penalties
  if (record.flags & message::kFlagPenalties) apply_penalties(p, record, x, chunk, counts);
  if (record.flags & message::kFlagMaskStops) mask_stops(x, chunk, extra, record.num_stop_ids);
  if ((record.flags & message::kFlagMasked) && p.bitmask != nullptr)
    apply_bitmask(x, chunk, p.bitmask + static_cast<int64_t>(record.bitmask_row) * p.bitmask_words);
  __syncthreads();  // the edited row before its readers
}

}  // namespace srt::cuda
