#include "moe/gemm.cuh"

namespace srt::cuda::moe {

cudaError_t gemm_f16(const GemmArgs& args, bool gated, bool pdl, cudaStream_t stream) {
  return gated ? dispatch_gemm<__half, false, true>(args, pdl, stream)
               : dispatch_gemm<__half, false, false>(args, pdl, stream);
}

}  // namespace srt::cuda::moe
