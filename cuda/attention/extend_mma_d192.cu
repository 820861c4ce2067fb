// Portable extend kernels, head_dim 192, values 128.
#include "attention/extend_mma.cuh"

namespace srt::cuda {

cudaError_t extend_mma_d192(const ExtendParams& p, cudaStream_t stream) {
  return dispatch_extend_mma<192, 128>(p, stream);
}

}  // namespace srt::cuda
