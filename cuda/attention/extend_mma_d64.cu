// Portable extend kernels, head_dim 64.
#include "attention/extend_mma.cuh"

namespace srt::cuda {

cudaError_t extend_mma_d64(const ExtendParams& p, cudaStream_t stream) {
  return dispatch_extend_mma<64, 64>(p, stream);
}

}  // namespace srt::cuda
