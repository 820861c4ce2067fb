// Paged decode attention: one query token per sequence against its paged KV, split over a plan.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "attention/params.h"
#include "attention/plan.h"
#include "common/launch.h"

namespace srt::cuda {

struct DecodeParams {
  const void* q = nullptr;  // [num_rows, num_q_heads, head_dim], rows q_stride elements apart
  void* out = nullptr;      // the same shape, rows out_stride elements apart
  int64_t q_stride = 0;
  int64_t out_stride = 0;
  Dtype dtype = Dtype::kBF16;  // of q and out: kBF16 or kF16
  // Written where set: [num_q_heads, num_rows], heads out_scale_stride floats apart. Then out is
  // e4m3, value = stored * scale of its row and head; for head_dim 128.
  float* out_scales = nullptr;
  int64_t out_scale_stride = 0;
  int num_rows = 0;  // rows from the message's num_tokens on are padding and get zeros
  int num_q_heads = 0;
  KvPool kv;
  const int32_t* page_table = nullptr;  // [num_table_rows, page_table_stride]
  int64_t page_table_stride = 0;
  Scoring scoring;                   // causal is implied: the query is the newest token
  const int32_t* message = nullptr;  // the step message on the device, planned by plan_decode
  int plan_offset = 0;        // of this layer's plan: words from the message's work section on
  void* workspace = nullptr;  // DecodeGrid::workspace_bytes, zeroed once at its allocation
  // Start before the previous kernel has finished. That one may write q and this step's KV; the
  // page table and older KV are read at once, so whatever wrote them must have finished: some
  // kernel after prepare_step must have been launched without the attribute.
  bool pdl = false;
};

// What the planner must know of the launches to come. plan.num_ctas is 0 where no kernel fits.
struct DecodeGrid {
  DecodePlanShape plan;        // but for the window
  size_t workspace_bytes = 0;  // partial results and their arrival counters
};
[[nodiscard]] DecodeGrid decode_grid(int num_q_heads, int num_kv_heads, int head_dim, KvDtype kv,
                                     int num_sms);

// Sequences [0, num_decode) of the message: token i is sequence i's query.
[[nodiscard]] cudaError_t decode_attention(const DecodeParams& p, cudaStream_t stream);

}  // namespace srt::cuda
