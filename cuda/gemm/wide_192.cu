// Instantiates the wide GEMM with tiles of 192 weight rows.
#include "gemm/wide_kernel.cuh"

namespace srt::cuda::wide {

template cudaError_t run_tile<192, 2, false>(const WideGemmParams&, const Args&, int, cudaStream_t);

}  // namespace srt::cuda::wide
