// Instantiates the gated wide GEMM with tiles of 224 weight rows by 192 rows of x.
#include "gemm/wide_kernel.cuh"

namespace srt::cuda::wide {

template cudaError_t run_tile<224, 3, true>(const WideGemmParams&, const Args&, int, cudaStream_t);

}  // namespace srt::cuda::wide
