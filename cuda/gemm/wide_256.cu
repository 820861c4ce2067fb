// Instantiates the wide GEMM with tiles of 256 weight rows.
#include "gemm/wide_kernel.cuh"

namespace srt::cuda::wide {

template cudaError_t run_tile<256, 2, false>(const WideGemmParams&, const Args&, int, cudaStream_t);

}  // namespace srt::cuda::wide
