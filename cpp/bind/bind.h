// What each bind_*.cc file adds to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace srt::bind {

void bind_errors(pybind11::module_& m);
void bind_scheduler(pybind11::module_& m);
void bind_cpu(pybind11::module_& m);
void bind_cpu_moe(pybind11::module_& m);
#ifdef SRT_WITH_CUDA
void bind_cuda_attention(pybind11::module_& m);
void bind_cuda_comm(pybind11::module_& m);
void bind_cuda_decode(pybind11::module_& m);
void bind_cuda_decode_step(pybind11::module_& m);
void bind_cuda_fused(pybind11::module_& m);
void bind_cuda_extend(pybind11::module_& m);
void bind_cuda_step(pybind11::module_& m);
void bind_cuda_gemm(pybind11::module_& m);
void bind_cuda_latent(pybind11::module_& m);
void bind_cuda_moe(pybind11::module_& m);
#endif

}  // namespace srt::bind
