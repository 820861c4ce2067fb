// Picks the extend kernel for a shape and a device.
#include "attention/extend.h"
#include "attention/extend_mma.cuh"

namespace srt::cuda {

cudaError_t extend_portable(const ExtendParams& p, cudaStream_t stream) {
  if (p.num_tokens == 0 || p.num_seqs == 0) return cudaSuccess;
  if (p.kv.head_dim == 192 && p.kv.head_dim_v == 128) return extend_mma_d192(p, stream);
  if (p.kv.head_dim != p.kv.head_dim_v) return cudaErrorInvalidValue;
  switch (p.kv.head_dim) {
    case 64:
      return extend_mma_d64(p, stream);
    case 80:
      return extend_mma_d80(p, stream);
    case 96:
      return extend_mma_d96(p, stream);
    case 128:
      return extend_mma_d128(p, stream);
    case 256:
      return extend_mma_d256(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t extend_attention(const ExtendParams& p, cudaStream_t stream) {
  return extend_sm90_takes(p) ? extend_sm90(p, stream) : extend_portable(p, stream);
}

}  // namespace srt::cuda
