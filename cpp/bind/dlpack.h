// The pybind11 caster that turns any DLPack-capable Python tensor into a borrowed TensorView.
//
// Fast path: the producer's C exchange table (`__dlpack_c_exchange_api__` on the type, DLPack 1.3),
// about 50 ns and no allocation. Otherwise `__dlpack__(stream=-1)` on CUDA (no hidden sync) or
// `__dlpack__()` on the CPU; the capsule then lives as long as the argument caster.
#pragma once

#include <dlpack/dlpack.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <unordered_map>

#include "core/tensor_view.h"

namespace srt::bind {

namespace py = pybind11;

inline std::optional<DType> to_dtype(DLDataType t) {
  if (t.lanes != 1) return std::nullopt;
  switch (t.code) {
    case kDLFloat:
      if (t.bits == 64) return DType::kF64;
      if (t.bits == 32) return DType::kF32;
      if (t.bits == 16) return DType::kF16;
      return std::nullopt;
    case kDLBfloat:
      return t.bits == 16 ? std::optional(DType::kBF16) : std::nullopt;
    case kDLInt:
      if (t.bits == 64) return DType::kI64;
      if (t.bits == 32) return DType::kI32;
      if (t.bits == 16) return DType::kI16;
      if (t.bits == 8) return DType::kI8;
      return std::nullopt;
    case kDLUInt:
      if (t.bits == 64) return DType::kU64;
      return t.bits == 8 ? std::optional(DType::kU8) : std::nullopt;
    case kDLBool:
      return DType::kBool;
    default:
      return std::nullopt;
  }
}

// Fills `out` from `t`; throws InvalidArgument on a dtype, device or rank that we do not take.
inline void fill_view(const DLTensor& t, TensorView& out) {
  const std::optional<DType> dtype = to_dtype(t.dtype);
  expect(dtype.has_value(), "tensor has an unsupported dtype (cross fp8 tensors as uint8)");
  expect(t.ndim <= TensorView::kMaxDims, "tensor has more than 5 dimensions");
  const bool cuda = t.device.device_type == kDLCUDA;
  expect(cuda || t.device.device_type == kDLCPU || t.device.device_type == kDLCUDAHost,
         "tensor is neither on the CPU nor on a CUDA device");
  out.data = static_cast<char*>(t.data) + t.byte_offset;
  out.dtype = *dtype;
  out.device = cuda ? Device::kCuda : Device::kCpu;
  out.device_id = t.device.device_id;
  out.ndim = t.ndim;
  int64_t dense = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    const auto k = static_cast<size_t>(i);
    out.shape[k] = t.shape[i];
    out.stride[k] = t.strides != nullptr ? t.strides[i] : dense;
    dense *= t.shape[i];
  }
}

// The producer's exchange table, looked up once per Python type; nullptr where it has none.
inline const DLPackExchangeAPI* exchange_api(PyTypeObject* type) {
  static auto* const cache = new std::unordered_map<PyTypeObject*, const DLPackExchangeAPI*>;
  const auto found = cache->find(type);
  if (found != cache->end()) return found->second;
  const DLPackExchangeAPI* api = nullptr;
  PyObject* attr =
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
  if (attr == nullptr) {
    PyErr_Clear();
  } else {
    if (PyCapsule_IsValid(attr, "dlpack_exchange_api")) {
      api =
          static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(attr, "dlpack_exchange_api"));
    }
    Py_DECREF(attr);
  }
  if (api != nullptr && api->dltensor_from_py_object_no_sync == nullptr) api = nullptr;
  cache->emplace(type, api);
  return api;
}

}  // namespace srt::bind

namespace pybind11::detail {

template <>
struct type_caster<srt::TensorView> {
  PYBIND11_TYPE_CASTER(srt::TensorView, const_name("Tensor"));

  bool load(handle src, bool /*convert*/) {
    if (!src || src.is_none()) return false;
    if (const DLPackExchangeAPI* api = srt::bind::exchange_api(Py_TYPE(src.ptr()))) {
      DLTensor t;
      if (api->dltensor_from_py_object_no_sync(src.ptr(), &t) != 0) throw error_already_set();
      srt::bind::fill_view(t, value);
      return true;
    }
    return load_capsule(src);
  }

 private:
  bool load_capsule(handle src) {
    if (!hasattr(src, "__dlpack__")) return false;
    const auto device = src.attr("__dlpack_device__")().cast<tuple>();
    const bool cuda = device[0].cast<int>() == static_cast<int>(kDLCUDA);
    capsule_ = cuda ? src.attr("__dlpack__")(arg("stream") = -1) : src.attr("__dlpack__")();
    void* p = PyCapsule_GetPointer(capsule_.ptr(), "dltensor");
    if (p == nullptr) throw error_already_set();
    srt::bind::fill_view(static_cast<DLManagedTensor*>(p)->dl_tensor, value);
    return true;  // the capsule's own destructor releases the tensor: nobody renamed it
  }

  object capsule_;
};

}  // namespace pybind11::detail
