// The decode step's kernels, each instantiated in a source file of its own.
#pragma once

#include "decode_step/layout.cuh"

namespace srt::cuda::decode_step {

template <typename L>
cudaError_t launch_decode_step(const Args& a, cudaStream_t stream);

}  // namespace srt::cuda::decode_step
