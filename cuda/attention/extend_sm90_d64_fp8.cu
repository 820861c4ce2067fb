// Hopper extend kernels over fp8 pools, head_dim 64.
#include "attention/extend_sm90.cuh"

namespace srt::cuda {

cudaError_t extend_sm90_d64_fp8(const ExtendParams& p, cudaStream_t stream) {
  return dispatch_extend_sm90<64, 64, true>(p, stream);
}

}  // namespace srt::cuda
