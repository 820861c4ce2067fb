// The Python module `srt._srt_core`: one line per room.
#include "bind/bind.h"

PYBIND11_MODULE(_srt_core, m) {
  m.doc() = "SRT's native core: scheduler, radix cache, KV pages and kernels.";
#ifdef SRT_WITH_CUDA
  m.attr("HAS_CUDA") = true;
#else
  m.attr("HAS_CUDA") = false;
#endif
  srt::bind::bind_errors(m);
  srt::bind::bind_scheduler(m);
  srt::bind::bind_cpu(m);
  srt::bind::bind_cpu_moe(m);
#ifdef SRT_WITH_CUDA
  srt::bind::bind_cuda_attention(m);
  srt::bind::bind_cuda_comm(m);
  srt::bind::bind_cuda_decode(m);
  srt::bind::bind_cuda_decode_step(m);
  srt::bind::bind_cuda_fused(m);
  srt::bind::bind_cuda_extend(m);
  srt::bind::bind_cuda_step(m);
  srt::bind::bind_cuda_gemm(m);
  srt::bind::bind_cuda_latent(m);
  srt::bind::bind_cuda_moe(m);
#endif
}
