// The kernels of one instruction set: loops over a range of rows, tokens or outputs. The files
// named after the operations split the work over threads and call these.
#pragma once

#include "cpu/activation.h"
#include "cpu/attention.h"
#include "cpu/grouped.h"
#include "cpu/kv_store.h"
#include "cpu/linear.h"
#include "cpu/moe.h"
#include "cpu/norm.h"
#include "cpu/sample.h"

namespace srt::cpu {

struct Kernels {
  void (*rms_norm)(const RmsNormParams&, int64_t begin, int64_t end);
  void (*layer_norm)(const LayerNormParams&, int64_t begin, int64_t end);
  void (*gated)(const GatedParams&, int64_t begin, int64_t end);
  void (*kv_store)(const KvStoreParams&, int64_t begin, int64_t end);
  void (*linear)(const LinearParams&, int64_t begin, int64_t end);
  // bf16 products on matrix tiles; nullptr where the machine has none, then `linear` takes them.
  int64_t (*packed_words)(const LinearParams&);
  void (*pack_tokens)(const LinearParams&, uint32_t* out);
  void (*tile_linear)(const LinearParams&, const uint32_t* packed, int64_t begin, int64_t end);
  void (*to_float)(DType, const void* x, int64_t rows, int64_t cols, int64_t stride, float* out);
  void (*grouped)(const GroupedLinearParams&, const GroupedItem&);
  void (*combine)(const ExpertsParams&, int64_t begin, int64_t end);
  void (*attention)(const AttentionParams&, const AttentionItem&);
  void (*merge_attention)(const AttentionParams&, const AttentionItem* parts, int64_t count);
  int32_t (*argmax)(DType, const void* x, int64_t size);
  float (*temper)(float* x, int64_t size, float temperature, float* weights);
  int32_t (*race)(const float* weights, int64_t size, uint32_t seed_lo, uint32_t seed_hi,
                  uint32_t position);
  void (*token_logprobs)(const LogprobParams&, int64_t begin, int64_t end);
};

const Kernels& portable_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& amx_kernels();

// Those of active_isa().
const Kernels& kernels();

}  // namespace srt::cpu
