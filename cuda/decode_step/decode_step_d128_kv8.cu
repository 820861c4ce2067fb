// Instantiates the decode step for heads of 128 values, over an fp8 pool.
#include "decode_step/kernel.cuh"

namespace srt::cuda::decode_step {

template cudaError_t launch_decode_step<Layout<128, 1>>(const Args&, cudaStream_t);

}  // namespace srt::cuda::decode_step
