// Hopper extend kernels, head_dim 128.
#include "attention/extend_sm90.cuh"

namespace srt::cuda {

cudaError_t extend_sm90_d128(const ExtendParams& p, cudaStream_t stream) {
  return dispatch_extend_sm90<128, 128, false>(p, stream);
}

}  // namespace srt::cuda
