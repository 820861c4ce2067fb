// Instantiates the gated wide GEMM with tiles of 224 weight rows.
#include "gemm/wide_kernel.cuh"

namespace srt::cuda::wide {

template cudaError_t run_tile<224, 2, true>(const WideGemmParams&, const Args&, int, cudaStream_t);

}  // namespace srt::cuda::wide
