// Hopper extend kernels, head_dim 96.
#include "attention/extend_sm90.cuh"

namespace srt::cuda {

cudaError_t extend_sm90_d96(const ExtendParams& p, cudaStream_t stream) {
  return dispatch_extend_sm90<96, 96, false>(p, stream);
}

}  // namespace srt::cuda
