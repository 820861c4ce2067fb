#include "attention/latent_kernel.cuh"
#include "attention/latent_launch.h"

namespace srt::cuda::latent {

cudaError_t decode_bf16(const decode::Args& args, KvDtype dtype, bool pdl, int num_ctas,
                        cudaStream_t stream) {
  return Launch<__nv_bfloat16>::decode(args, dtype, pdl, num_ctas, stream);
}

cudaError_t extend_bf16(const ExtendParams& p, cudaStream_t stream) {
  return Launch<__nv_bfloat16>::extend(p, stream);
}

}  // namespace srt::cuda::latent
