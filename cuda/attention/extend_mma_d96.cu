// Portable extend kernels, head_dim 96.
#include "attention/extend_mma.cuh"

namespace srt::cuda {

cudaError_t extend_mma_d96(const ExtendParams& p, cudaStream_t stream) {
  return dispatch_extend_mma<96, 96>(p, stream);
}

}  // namespace srt::cuda
