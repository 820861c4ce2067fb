// Portable extend kernels, head_dim 80.
#include "attention/extend_mma.cuh"

namespace srt::cuda {

cudaError_t extend_mma_d80(const ExtendParams& p, cudaStream_t stream) {
  return dispatch_extend_mma<80, 80>(p, stream);
}

}  // namespace srt::cuda
