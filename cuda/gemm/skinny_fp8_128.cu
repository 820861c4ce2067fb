// Instantiates the skinny fp8 GEMM for up to 128 rows of x.
#include "gemm/skinny_fp8_dispatch.cuh"

namespace srt::cuda::skinny_fp8 {

template cudaError_t run_blocks<128>(const SkinnyFp8Params&, const Args&, int, cudaStream_t);

}  // namespace srt::cuda::skinny_fp8
