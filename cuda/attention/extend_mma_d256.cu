// Portable extend kernels, head_dim 256.
#include "attention/extend_mma.cuh"

namespace srt::cuda {

cudaError_t extend_mma_d256(const ExtendParams& p, cudaStream_t stream) {
  return dispatch_extend_mma<256, 256>(p, stream);
}

}  // namespace srt::cuda
