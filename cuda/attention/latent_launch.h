// The latent kernels by dtype; each has a source of its own.
#pragma once

#include "attention/decode_walk.cuh"
#include "attention/extend.h"

namespace srt::cuda::latent {

cudaError_t decode_bf16(const decode::Args& args, KvDtype dtype, bool pdl, int num_ctas,
                        cudaStream_t stream);
cudaError_t decode_f16(const decode::Args& args, KvDtype dtype, bool pdl, int num_ctas,
                       cudaStream_t stream);
cudaError_t extend_bf16(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_f16(const ExtendParams& p, cudaStream_t stream);

}  // namespace srt::cuda::latent
