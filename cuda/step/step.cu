// What happens on the device before the first layer: unpacking the step message, gathering rows.
//
// Shapes    see the params structs; table rows 16-byte aligned, width % 8 == 0.
// Parallel  prepare_step: a grid-stride loop over each section; the sections do not depend on one
//           another, so one launch does them all. gather_rows: 8 values a thread.
// Bound     latency: the message is a few KB. gather_rows: HBM, num_rows * width * (read +
// written).
#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "step/message.cuh"
#include "step/step.h"

namespace srt::cuda {
namespace {

constexpr int kLane = 8;
constexpr int kThreads = 256;
constexpr int kMaxBlocks = 64;

struct Span {
  int begin;
  int step;
};

__device__ __forceinline__ int4 record(const int* words, int i, int record_words) {
  return *reinterpret_cast<const int4*>(words + static_cast<int64_t>(i) * record_words);
}

__device__ __forceinline__ void unpack_seqs(const PrepareStepParams& p, const int* head, Span s) {
  const int num_seqs = head[message::kNumSeqs];
  const int num_tokens = head[message::kNumTokens];
  const int* const seqs = p.message + head[message::kOffSeqs];
  for (int i = s.begin; i <= p.padded_seqs; i += s.step) {
    const bool real = i < num_seqs;
    const int4 seq = real ? record(seqs, i, message::kSeqWords)
                          : int4{p.scratch_row, num_tokens + i - num_seqs, 1, 1};
    p.q_indptr[i] = seq.y;
    if (i == p.padded_seqs) return;
    p.rows[i] = seq.x;
    p.seq_lens[i] = seq.w;
    p.prompt_lens[i] = real ? seqs[i * message::kSeqWords + 4] : 1;
  }
}

__device__ __forceinline__ void unpack_tokens(const PrepareStepParams& p, const int* head, Span s) {
  const int num_tokens = head[message::kNumTokens];
  const int* const seqs = p.message + head[message::kOffSeqs];
  const int* const tokens = p.message + head[message::kOffTokens];
  for (int i = s.begin; i < p.padded_tokens; i += s.step) {
    int4 token{0, 0, 0, p.padded_seqs - 1};
    if (i < num_tokens) {
      token = record(tokens, i, message::kTokenWords);
      if (token.x < 0) token.x = p.last_tokens[seqs[token.w * message::kSeqWords]];
      p.slot_tokens[token.z] = token.x;
    }
    p.token_ids[i] = token.x;
    p.positions[i] = token.y;
    p.slots[i] = token.z;
    p.token_seq[i] = token.w;
  }
}

__device__ __forceinline__ void unpack_samples(const PrepareStepParams& p, const int* head,
                                               Span s) {
  const int num_samples = head[message::kNumSamples];
  const int* const seqs = p.message + head[message::kOffSeqs];
  const int* const records = p.message + head[message::kOffSampling];
  constexpr int kQuads = message::kSamplingWords / 4;
  for (int i = s.begin; i < p.padded_seqs * kQuads; i += s.step) {
    const int sample = i / kQuads;
    const bool first = i % kQuads == 0;
    int4 words{0, first ? message::kFlagGreedy : 0, 0, 0};
    if (sample < num_samples) words = record(records, i, 4);
    reinterpret_cast<int4*>(p.sampling)[i] = words;
    if (first)
      p.sample_rows[sample] =
          sample < num_samples ? seqs[words.x * message::kSeqWords] : p.scratch_row;
  }
}

__device__ __forceinline__ void unpack_logits(const PrepareStepParams& p, const int* head, Span s) {
  const int num_logits = min(head[message::kNumLogits], p.max_logits);
  const int* const logits = p.message + head[message::kOffLogits];
  for (int i = s.begin; i < max(num_logits, p.padded_seqs); i += s.step) {
    const int4 logit = i < num_logits ? record(logits, i, message::kLogitWords) : int4{0, 0, -1, 0};
    p.logit_idx[i] = logit.x;
    p.logit_targets[i] = logit.z;
  }
}

__global__ void __launch_bounds__(kThreads)
    prepare_step_kernel(const __grid_constant__ PrepareStepParams p) {
  ptx::grid_launch();
  ptx::grid_wait();
  const Span s{static_cast<int>(blockIdx.x * kThreads + threadIdx.x),
               static_cast<int>(gridDim.x * kThreads)};
  const int* const head = p.message;
  const int* const updates = p.message + head[message::kOffPageUpdates];
  for (int i = s.begin; i < head[message::kNumPageUpdates]; i += s.step) {
    const int4 update = record(updates, i, message::kUpdateWords);
    p.page_table[static_cast<int64_t>(update.x) * p.max_pages_per_seq + update.y] = update.z;
  }
  unpack_tokens(p, head, s);
  unpack_seqs(p, head, s);
  unpack_samples(p, head, s);
  unpack_logits(p, head, s);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(const __grid_constant__ GatherRowsParams p, int blocks_per_row) {
  ptx::grid_launch();
  const int64_t row = static_cast<int>(blockIdx.x) / blocks_per_row;
  const int block = static_cast<int>(blockIdx.x) % blocks_per_row;
  const int at = (block * kThreads + static_cast<int>(threadIdx.x)) * kLane;
  ptx::grid_wait();
  if (at >= p.width) return;
  const int id = p.ids[row] - p.first_id;
  float x[kLane] = {};
  if (id >= 0 && id < p.num_table_rows)
    load_floats(static_cast<const T*>(p.table) + id * p.table_stride + at, x);
#pragma unroll
  for (int j = 0; j < kLane; ++j) x[j] *= p.scale;
  store_floats(static_cast<T*>(p.out) + row * p.width + at, x);
}

}  // namespace

cudaError_t prepare_step(const PrepareStepParams& p, cudaStream_t stream) {
  // The counts lie on the device: the grid covers the padded shape, loops take what exceeds it.
  const int widest = p.padded_tokens > 4 * p.padded_seqs ? p.padded_tokens : 4 * p.padded_seqs + 1;
  const int blocks = div_up(widest, kThreads);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
      .block = dim3(kThreads),
      .pdl = p.pdl};
  return launch(prepare_step_kernel, shape, stream, p);
}

cudaError_t gather_rows(const GatherRowsParams& p, cudaStream_t stream) {
  if (p.num_rows == 0 || p.width == 0) return cudaSuccess;
  if (p.width % kLane != 0) return cudaErrorInvalidValue;
  const int blocks_per_row = div_up(p.width / kLane, kThreads);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(p.num_rows * blocks_per_row)),
                          .block = dim3(kThreads),
                          .pdl = p.pdl};
  SRT_DISPATCH_DTYPE(p.dtype, T,
                     { return launch(gather_rows_kernel<T>, shape, stream, p, blocks_per_row); });
}

}  // namespace srt::cuda
