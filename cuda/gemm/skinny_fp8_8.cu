// Instantiates the skinny fp8 GEMM for up to 8 rows of x.
#include "gemm/skinny_fp8_dispatch.cuh"

namespace srt::cuda::skinny_fp8 {

template cudaError_t run_rows<8, Scales::kRows>(const SkinnyFp8Params&, const Args&, int, int,
                                                cudaStream_t);
template cudaError_t run_rows<8, Scales::kGroups>(const SkinnyFp8Params&, const Args&, int, int,
                                                  cudaStream_t);
template cudaError_t run_blocks<8>(const SkinnyFp8Params&, const Args&, int, cudaStream_t);

}  // namespace srt::cuda::skinny_fp8
