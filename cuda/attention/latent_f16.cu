#include "attention/latent_kernel.cuh"
#include "attention/latent_launch.h"

namespace srt::cuda::latent {

cudaError_t decode_f16(const decode::Args& args, KvDtype dtype, bool pdl, int num_ctas,
                       cudaStream_t stream) {
  return Launch<__half>::decode(args, dtype, pdl, num_ctas, stream);
}

cudaError_t extend_f16(const ExtendParams& p, cudaStream_t stream) {
  return Launch<__half>::extend(p, stream);
}

}  // namespace srt::cuda::latent
