// What every launcher needs: dtypes, grid arithmetic, and launches with Hopper's attributes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace srt::cuda {

enum class Dtype : uint8_t { kF32, kF16, kBF16 };

template <typename A, typename B>
__host__ __device__ constexpr auto div_up(A a, B b) {
  return (a + b - 1) / b;
}

template <typename A, typename B>
__host__ __device__ constexpr auto round_up(A a, B b) {
  return div_up(a, b) * b;
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t smem_bytes = 0;  // dynamic; above 48 KB the launcher raises the kernel's limit first
  bool pdl = false;       // programmatic dependent launch: the kernel calls ptx::grid_wait() itself
  int cluster = 1;        // CTAs of a cluster, along x
};

// Raises a kernel's dynamic shared-memory limit; cheap, but belongs before a graph is captured.
template <typename... Params>
[[nodiscard]] cudaError_t allow_smem(void (*kernel)(Params...), size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

// kernel<<<shape>>>(args...), with the attributes that the triple chevron cannot say.
template <typename... Params, typename... Args>
[[nodiscard]] cudaError_t launch(void (*kernel)(Params...), const LaunchShape& shape,
                                 cudaStream_t stream, const Args&... args) {
  const cudaError_t limit = allow_smem(kernel, shape.smem_bytes);
  if (limit != cudaSuccess) return limit;
  cudaLaunchAttribute attrs[2];
  unsigned num_attrs = 0;
  if (shape.pdl) {
    attrs[num_attrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[num_attrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attrs[num_attrs].id = cudaLaunchAttributeClusterDimension;
    attrs[num_attrs].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attrs[num_attrs].val.clusterDim.y = 1;
    attrs[num_attrs++].val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.smem_bytes;
  config.stream = stream;
  config.attrs = attrs;
  config.numAttrs = num_attrs;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

// Multiprocessors of the current device, asked once per process (all devices of a host are alike).
inline int num_sms() {
  static const int count = [] {
    int device = 0;
    int value = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return 1;
    if (cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
      return 1;
    return value;
  }();
  return count;
}

// Major * 10 + minor of the current device, asked once per process.
inline int compute_capability() {
  static const int capability = [] {
    int device = 0;
    int major = 0;
    int minor = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess)
      return 0;
    if (cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess)
      return 0;
    return major * 10 + minor;
  }();
  return capability;
}

}  // namespace srt::cuda

// Runs the body with `T` bound to the C++ type of a run-time Dtype; the body returns.
#define SRT_DISPATCH_DTYPE(dtype, T, ...) \
  switch (dtype) {                        \
    case ::srt::cuda::Dtype::kF32: {      \
      using T = float;                    \
      __VA_ARGS__                         \
    }                                     \
    case ::srt::cuda::Dtype::kF16: {      \
      using T = __half;                   \
      __VA_ARGS__                         \
    }                                     \
    case ::srt::cuda::Dtype::kBF16: {     \
      using T = __nv_bfloat16;            \
      __VA_ARGS__                         \
    }                                     \
  }                                       \
  return cudaErrorInvalidValue

// The same for a bool that is a template switch.
#define SRT_DISPATCH_BOOL(value, kName, ...) \
  if (value) {                               \
    constexpr bool kName = true;             \
    __VA_ARGS__                              \
  } else {                                   \
    constexpr bool kName = false;            \
    __VA_ARGS__                              \
  }
