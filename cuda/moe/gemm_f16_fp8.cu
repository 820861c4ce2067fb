#include "moe/gemm.cuh"

namespace srt::cuda::moe {

cudaError_t gemm_f16_fp8(const GemmArgs& args, bool gated, bool pdl, cudaStream_t stream) {
  return gated ? dispatch_gemm<__half, true, true>(args, pdl, stream)
               : dispatch_gemm<__half, true, false>(args, pdl, stream);
}

}  // namespace srt::cuda::moe
