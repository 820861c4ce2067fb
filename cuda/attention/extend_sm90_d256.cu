// Hopper extend kernels, head_dim 256.
#include "attention/extend_sm90.cuh"

namespace srt::cuda {

cudaError_t extend_sm90_d256(const ExtendParams& p, cudaStream_t stream) {
  return dispatch_extend_sm90<256, 256, false>(p, stream);
}

}  // namespace srt::cuda
