// Instantiates the skinny fp8 GEMM for up to 64 rows of x.
#include "gemm/skinny_fp8_dispatch.cuh"

namespace srt::cuda::skinny_fp8 {

template cudaError_t run_rows<64, Scales::kRows>(const SkinnyFp8Params&, const Args&, int, int,
                                                 cudaStream_t);
template cudaError_t run_rows<64, Scales::kGroups>(const SkinnyFp8Params&, const Args&, int, int,
                                                   cudaStream_t);
template cudaError_t run_blocks<64>(const SkinnyFp8Params&, const Args&, int, cudaStream_t);

}  // namespace srt::cuda::skinny_fp8
