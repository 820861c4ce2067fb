// Instantiates the decode step for heads of 128 values.
#include "decode_step/kernel.cuh"

namespace srt::cuda::decode_step {

cudaError_t launch_d128(const Args& a, cudaStream_t stream) {
  return launch_decode_step<Layout<128>>(a, stream);
}

}  // namespace srt::cuda::decode_step
