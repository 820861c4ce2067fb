// What every binding of a CUDA launcher needs: streams as integers, error codes as exceptions,
// dtypes, and the checks that many arguments share.
#pragma once

#include <cuda_runtime.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>

#include "common/launch.h"
#include "core/error.h"
#include "core/tensor_view.h"
#include "rope/rotary.h"

namespace srt::bind {

inline cudaStream_t as_stream(uint64_t stream) {
  return reinterpret_cast<cudaStream_t>(stream);  // NOLINT(performance-no-int-to-ptr)
}

inline void check_cuda(cudaError_t e, const char* what) {
  if (e != cudaSuccess) throw CudaError(std::string(what) + ": " + cudaGetErrorString(e));
}

// The dtype of activations; `name` is the argument's.
inline cuda::Dtype as_dtype(const TensorView& t, const char* name) {
  switch (t.dtype) {
    case DType::kF32:
      return cuda::Dtype::kF32;
    case DType::kF16:
      return cuda::Dtype::kF16;
    case DType::kBF16:
      return cuda::Dtype::kBF16;
    default:
      throw InvalidArgument(std::string(name) + " must be float32, float16 or bfloat16");
  }
}

// How a pool stores K and V.
inline cuda::KvFormat as_kv_format(const std::string& name) {
  if (name.empty()) return cuda::KvFormat::kSame;
  if (name == "fp8_e4m3") return cuda::KvFormat::kE4M3;
  if (name == "fp8_e5m2") return cuda::KvFormat::kE5M2;
  throw InvalidArgument("kv_format must be empty, fp8_e4m3 or fp8_e5m2, not " + name);
}

// Throws "`name` `what`" unless ok; builds the message only then.
inline void expect_arg(bool ok, const char* name, const char* what) {
  if (!ok) throw InvalidArgument(std::string(name) + " " + what);
}

inline bool is_aligned16(const TensorView& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
}

// int32, contiguous, on the device, with at least `least` elements.
inline int* int_data(const TensorView& t, const char* name, int64_t least) {
  expect_arg(t.device == Device::kCuda && t.dtype == DType::kI32 && t.is_contiguous(), name,
             "must be contiguous int32 on the device");
  expect_arg(t.numel() >= least, name, "is too short");
  return t.ptr<int>();
}

// float32, contiguous, on the device, with exactly `count` elements.
inline float* float_data(const TensorView& t, const char* name, int64_t count) {
  expect_arg(t.device == Device::kCuda && t.dtype == DType::kF32 && t.is_contiguous(), name,
             "must be contiguous float32 on the device");
  expect_arg(t.numel() == count, name, "has the wrong number of elements");
  return t.ptr<float>();
}

// Scales of groups of 128 values, float32 [rows, groups] on the device, where each group's come one
// after the other and groups start at multiples of 32 bytes.
struct GroupScales {
  float* data;
  int64_t stride;  // floats from a group to the next
};
inline GroupScales group_scales(const TensorView& t, const char* name, int64_t rows,
                                int64_t groups) {
  expect_arg(t.device == Device::kCuda && t.dtype == DType::kF32, name,
             "must be float32 on the device");
  expect_arg(t.ndim == 2 && t.dim(0) == rows && t.dim(1) == groups, name,
             "must be [rows, ceil(k / 128)]");
  const int64_t stride = groups > 1 ? t.step(1) : (rows + 7) / 8 * 8;
  expect_arg((rows <= 1 || t.step(0) == 1) && stride % 8 == 0 && stride >= rows, name,
             "must hold a group's scales side by side, groups at multiples of 8");
  expect_arg(is_aligned16(t), name, "must be 16-byte aligned");
  return {t.ptr<float>(), stride};
}

// A contiguous vector of `count` elements in x's dtype (a weight, a bias), 16-byte aligned.
inline void* vector_data(const TensorView& t, const char* name, const TensorView& x,
                         int64_t count) {
  expect_arg(t.device == Device::kCuda && t.dtype == x.dtype && t.is_contiguous(), name,
             "must be contiguous on the device with the dtype of x");
  expect_arg(t.numel() == count, name, "has the wrong number of elements");
  expect_arg(is_aligned16(t), name, "must be 16-byte aligned");
  return t.data;
}

// The last dimension of t is contiguous and its rows start at multiples of 16 bytes.
inline void expect_rows(const TensorView& t, const char* name) {
  expect_arg(t.device == Device::kCuda, name, "must be on the device");
  const auto lane = static_cast<int64_t>(16 / dtype_bytes(t.dtype));
  bool ok = is_aligned16(t) && t.ndim >= 1 && (t.step(t.ndim - 1) == 1 || t.dim(t.ndim - 1) <= 1);
  for (int i = 0; i + 1 < t.ndim; ++i) ok = ok && (t.dim(i) <= 1 || t.step(i) % lane == 0);
  expect_arg(ok, name, "must have contiguous, 16-byte aligned rows");
}

}  // namespace srt::bind
