// Instantiates the gated wide GEMM with tiles of 128 weight rows.
#include "gemm/wide_kernel.cuh"

namespace srt::cuda::wide {

template cudaError_t run_tile<128, 2, true>(const WideGemmParams&, const Args&, int, cudaStream_t);

}  // namespace srt::cuda::wide
