// A borrowed n-dimensional array: what crosses the Python border, valid for the call only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/error.h"

namespace srt {

enum class DType : uint8_t { kF32, kF64, kF16, kBF16, kI8, kU8, kI16, kI32, kI64, kBool, kU64 };
enum class Device : uint8_t { kCpu, kCuda };

constexpr size_t dtype_bytes(DType t) {
  switch (t) {
    case DType::kF64:
    case DType::kI64:
    case DType::kU64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
    case DType::kI16:
      return 2;
    default:
      return 1;
  }
}

// Strides count elements. fp8 tensors cross as kU8; the binding's comment names the true type.
struct TensorView {
  static constexpr int kMaxDims = 5;

  void* data = nullptr;
  DType dtype = DType::kF32;
  Device device = Device::kCpu;
  int device_id = 0;
  int ndim = 0;
  std::array<int64_t, kMaxDims> shape{};
  std::array<int64_t, kMaxDims> stride{};

  template <typename T>
  T* ptr() const {
    return static_cast<T*>(data);
  }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[static_cast<size_t>(i)];
    return n;
  }
  int64_t dim(int i) const { return shape[static_cast<size_t>(i)]; }
  int64_t step(int i) const { return stride[static_cast<size_t>(i)]; }
  bool is_contiguous() const {
    int64_t want = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (dim(i) != 1 && step(i) != want) return false;
      want *= dim(i);
    }
    return true;
  }
};

}  // namespace srt
