// Instantiates the skinny GEMM for up to 8 rows of x.
#include "gemm/skinny_dispatch.cuh"

namespace srt::cuda::skinny {

template cudaError_t run_rows<8>(const SkinnyGemmParams&, const Args&, int, int, cudaStream_t);

}  // namespace srt::cuda::skinny
