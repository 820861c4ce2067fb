// Instantiates the wide GEMM with tiles of 192 weight rows by 192 rows of x.
#include "gemm/wide_kernel.cuh"

namespace srt::cuda::wide {

template cudaError_t run_tile<192, 3, false>(const WideGemmParams&, const Args&, int, cudaStream_t);

}  // namespace srt::cuda::wide
