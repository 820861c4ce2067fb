// All layers of a decode step of few rows as one persistent kernel (Hopper).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "common/launch.h"
#include "rope/rotary.h"

namespace srt::cuda {

// Device addresses of one layer. Matrices are bf16, contiguous, and start at multiples of 16 bytes.
struct DecodeStepLayer {
  const void* attn_norm;  // [hidden]
  const void* qkv;        // [(num_q_heads + 2 num_kv_heads) head_dim, hidden]
  const void* qkv_bias;   // its rows; null: none
  const void* o;          // [hidden, num_q_heads head_dim]
  const void* mlp_norm;   // [hidden]
  const void* gate_up;    // [2 intermediate, hidden], gate first
  const void* down;       // [hidden, intermediate]
  void* k_cache;          // [num_pages, num_kv_heads, page_size, head_dim]
  void* v_cache;
  float k_scale;  // of an fp8 pool: x = stored * scale; else not read
  float v_scale;
};
constexpr int kDecodeStepLayerWords = sizeof(DecodeStepLayer) / 8;

// What the layers of a model have in common.
struct DecodeStepShape {
  int num_layers;
  int hidden;
  int intermediate;
  int num_q_heads;
  int num_kv_heads;
  int head_dim;
};

struct DecodeStepParams {
  DecodeStepShape shape;
  const DecodeStepLayer* layers;  // [num_layers], on the device
  void* x;                        // bf16 [num_rows, hidden], contiguous: the stream, in place
  const int* positions;           // [num_rows]
  const int* slots;               // [num_rows]
  const int* rows;                // [num_rows]
  const int* seq_lens;            // [num_rows], this step's token included
  const int* page_table;          // rows page_table_stride apart
  int64_t page_table_stride;
  const float* cos_sin;  // [max_positions, head_dim]: cosines, then sines
  void* workspace;       // see decode_step_bytes
  int num_rows;
  int log2_page_size;
  KvFormat kv_format;
  float eps;    // of the norms
  float scale;  // of q k
  bool pdl;     // start before the previous kernel, which may write x alone, has ended
};

constexpr int kMaxDecodeStepRows = 8;

// Whether there is a kernel for these layers.
[[nodiscard]] bool decode_step_fits(const DecodeStepShape& shape);

// Workspace for up to kMaxDecodeStepRows rows, 256-byte aligned. At its allocation all bytes are
// set to 0xff, then the first kDecodeStepHeaderBytes to 0; launches that use it may not overlap.
[[nodiscard]] size_t decode_step_bytes(const DecodeStepShape& shape);
constexpr size_t kDecodeStepHeaderBytes = 256;

// x <- all layers of x. Every CTA must be resident at once: the grid is one CTA a multiprocessor,
// and nothing that waits for this launch may hold a multiprocessor.
[[nodiscard]] cudaError_t run_decode_step(const DecodeStepParams& p, cudaStream_t stream);

}  // namespace srt::cuda
