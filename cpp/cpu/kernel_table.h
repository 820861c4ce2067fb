// The table of kernels.h, filled with the kernels of the instruction set this file is compiled for.
#pragma once

#include "cpu/activation_kernel.h"
#include "cpu/attention_kernel.h"
#include "cpu/grouped_kernel.h"
#include "cpu/kernels.h"
#include "cpu/kv_store_kernel.h"
#include "cpu/linear_kernel.h"
#include "cpu/moe_kernel.h"
#include "cpu/norm_kernel.h"
#include "cpu/sample_kernel.h"

namespace srt::cpu::SRT_ISA {

constexpr Kernels kTable{
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .gated = gated,
    .kv_store = kv_store,
    .linear = linear,
    .packed_words = nullptr,
    .pack_tokens = nullptr,
    .tile_linear = nullptr,
    .to_float = to_float,
    .grouped = grouped,
    .combine = combine,
    .attention = attention,
    .merge_attention = merge_attention,
    .argmax = argmax,
    .temper = temper,
    .race = race,
    .token_logprobs = token_logprobs,
};

}  // namespace srt::cpu::SRT_ISA
