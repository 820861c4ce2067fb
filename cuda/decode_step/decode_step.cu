// The launcher of the decode step: what fits, and where the workspace's pieces lie.
#include "decode_step/decode_step.h"
#include "decode_step/launch.cuh"

namespace srt::cuda {
namespace decode_step {

namespace {

constexpr size_t kAlign = 256;

// Places the pieces behind one another; `base` may be null, to count bytes.
size_t place(const DecodeStepShape& s, uint8_t* base, Args* a) {
  size_t at = 0;
  const auto take = [&](size_t bytes) {
    uint8_t* const piece = base + at;
    at += round_up(bytes, kAlign);
    return piece;
  };
  const size_t q = static_cast<size_t>(s.num_q_heads) * s.head_dim;
  const size_t kv = static_cast<size_t>(s.num_kv_heads) * s.head_dim;
  const size_t rows = kCopies * kRows;
  const size_t parts = size_t{kCopies} * kPartSlots * s.num_q_heads;
  a->ended = reinterpret_cast<unsigned*>(take(kDecodeStepHeaderBytes));
  a->turn = a->ended + 1;
  a->qkv = reinterpret_cast<bf16*>(take(sizeof(bf16) * rows * (q + 2 * kv)));
  a->attn = reinterpret_cast<bf16*>(take(sizeof(bf16) * rows * q));
  a->mid = reinterpret_cast<bf16*>(take(sizeof(bf16) * rows * s.hidden));
  a->act = reinterpret_cast<bf16*>(take(sizeof(bf16) * rows * s.intermediate));
  a->out = reinterpret_cast<bf16*>(take(sizeof(bf16) * rows * s.hidden));
  a->parts_lse = reinterpret_cast<float*>(take(sizeof(float) * parts));
  a->parts = reinterpret_cast<float*>(take(sizeof(float) * parts * s.head_dim));
  return at;
}

template <int kHeadDim>
cudaError_t launch_head_dim(const Args& a, cudaStream_t stream) {
  return a.p.kv_format == KvFormat::kSame ? launch_decode_step<Layout<kHeadDim, 2>>(a, stream)
                                          : launch_decode_step<Layout<kHeadDim, 1>>(a, stream);
}

template <KvDtype kKv>
void set_widening(Args& a) {
  using W = Fp8Widening<bf16, kKv>;
  a.kv_shift = W::kShift;
  a.kv_factors = W::kFactor | W::kFactor << 16;
}

}  // namespace
}  // namespace decode_step

bool decode_step_fits(const DecodeStepShape& s) {
  using namespace decode_step;
  const bool heads = s.num_kv_heads > 0 && s.num_q_heads % s.num_kv_heads == 0 &&
                     s.num_q_heads / s.num_kv_heads <= kMaxGroup;
  const bool widths = s.hidden % kStep == 0 && s.intermediate % kStep == 0;
  return heads && widths && (s.head_dim == 64 || s.head_dim == 128) && s.num_layers > 0 &&
         s.num_layers <= kMaxLayers && s.hidden > 0 && s.intermediate > 0 &&
         compute_capability() >= 90 && compute_capability() < 100;
}

size_t decode_step_bytes(const DecodeStepShape& shape) {
  decode_step::Args a{};
  return decode_step::place(shape, nullptr, &a);
}

cudaError_t run_decode_step(const DecodeStepParams& p, cudaStream_t stream) {
  using namespace decode_step;
  if (p.num_rows == 0) return cudaSuccess;
  if (p.num_rows > kRows || !decode_step_fits(p.shape)) return cudaErrorInvalidValue;
  Args a{};
  a.p = p;
  place(p.shape, static_cast<uint8_t*>(p.workspace), &a);
  a.max_parts = kPartSlots / p.num_rows < kMaxParts ? kPartSlots / p.num_rows : kMaxParts;
  a.inverse_rows = 65536 / p.num_rows + 1;
  if (p.kv_format == KvFormat::kE4M3) set_widening<KvDtype::kE4M3>(a);
  if (p.kv_format == KvFormat::kE5M2) set_widening<KvDtype::kE5M2>(a);
  return p.shape.head_dim == 64 ? launch_head_dim<64>(a, stream) : launch_head_dim<128>(a, stream);
}

}  // namespace srt::cuda
