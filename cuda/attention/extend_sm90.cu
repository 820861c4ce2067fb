// Which shapes the Hopper extend kernel takes, and its dispatch by head size.
#include "attention/extend_sm90.cuh"

namespace srt::cuda {
namespace {

constexpr int kMinLog2PageSize = 3;  // a TMA box of 8 slots fills one swizzle atom

bool has_kernel(int head_dim, int head_dim_v) {
  if (head_dim == 192) return head_dim_v == 128;
  return head_dim == head_dim_v &&
         (head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128 || head_dim == 256);
}

bool has_fp8_kernel(int head_dim, int head_dim_v) {
  return head_dim == head_dim_v && (head_dim == 64 || head_dim == 128);
}

}  // namespace

bool extend_sm90_takes(const ExtendParams& p) {
  const bool fp8 = p.kv.dtype != KvDtype::kSame;
  return compute_capability() == 90 && p.kv.log2_page_size >= kMinLog2PageSize &&
         (fp8 ? has_fp8_kernel(p.kv.head_dim, p.kv.head_dim_v)
              : has_kernel(p.kv.head_dim, p.kv.head_dim_v));
}

cudaError_t extend_sm90(const ExtendParams& p, cudaStream_t stream) {
  if (p.num_tokens == 0 || p.num_seqs == 0) return cudaSuccess;
  if (!extend_sm90_takes(p)) return cudaErrorInvalidValue;
  if (p.kv.dtype != KvDtype::kSame)
    return p.kv.head_dim == 64 ? extend_sm90_d64_fp8(p, stream) : extend_sm90_d128_fp8(p, stream);
  switch (p.kv.head_dim) {
    case 64:
      return extend_sm90_d64(p, stream);
    case 80:
      return extend_sm90_d80(p, stream);
    case 96:
      return extend_sm90_d96(p, stream);
    case 128:
      return extend_sm90_d128(p, stream);
    case 192:
      return extend_sm90_d192(p, stream);
    default:
      return extend_sm90_d256(p, stream);
  }
}

}  // namespace srt::cuda
