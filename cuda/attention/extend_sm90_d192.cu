// Hopper extend kernels, head_dim 192, values 128.
#include "attention/extend_sm90.cuh"

namespace srt::cuda {

cudaError_t extend_sm90_d192(const ExtendParams& p, cudaStream_t stream) {
  return dispatch_extend_sm90<192, 128, false>(p, stream);
}

}  // namespace srt::cuda
