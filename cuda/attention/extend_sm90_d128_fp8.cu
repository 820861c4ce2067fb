// Hopper extend kernels over fp8 pools, head_dim 128.
#include "attention/extend_sm90.cuh"

namespace srt::cuda {

cudaError_t extend_sm90_d128_fp8(const ExtendParams& p, cudaStream_t stream) {
  return dispatch_extend_sm90<128, 128, true>(p, stream);
}

}  // namespace srt::cuda
