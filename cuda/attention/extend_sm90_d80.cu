// Hopper extend kernels, head_dim 80.
#include "attention/extend_sm90.cuh"

namespace srt::cuda {

cudaError_t extend_sm90_d80(const ExtendParams& p, cudaStream_t stream) {
  return dispatch_extend_sm90<80, 80, false>(p, stream);
}

}  // namespace srt::cuda
