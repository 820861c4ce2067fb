// What every binding of a CUDA launcher needs: streams as integers, error codes as exceptions.
#pragma once

#include <cuda_runtime.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>

#include "core/error.h"

namespace srt::bind {

inline cudaStream_t as_stream(uint64_t stream) {
  return reinterpret_cast<cudaStream_t>(stream);  // NOLINT(performance-no-int-to-ptr)
}

inline void check_cuda(cudaError_t e, const char* what) {
  if (e != cudaSuccess) throw CudaError(std::string(what) + ": " + cudaGetErrorString(e));
}

}  // namespace srt::bind
