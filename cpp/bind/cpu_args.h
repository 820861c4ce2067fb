// What every binding of a CPU kernel needs: tapes, the GIL, and the checks that arguments share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "bind/cpu_tape.h"
#include "core/error.h"
#include "core/tensor_view.h"
#include "cpu/activation.h"

namespace srt::bind {

// Work of a few microseconds keeps the GIL: giving it up could cost a thread switch.
constexpr int64_t kReleaseElements = 1 << 14;

template <typename F>
void run_once(int64_t elements, const F& work) {
  if (elements < kReleaseElements) return work();
  const pybind11::gil_scoped_release released;
  work();
}

// The same for work that a tape may take: it holds its parameters by value.
template <typename F>
void run(int64_t elements, const F& work) {
  if (CpuTape* tape = CpuTape::recording()) tape->add(work);
  run_once(elements, work);
}

inline void expect_not_recording() {
  expect(CpuTape::recording() == nullptr, "what reads the step message cannot be on a tape");
}

inline bool is_model_float(DType t) {
  return t == DType::kF32 || t == DType::kBF16 || t == DType::kF16;
}

inline void expect_cpu(const TensorView& t, const char* name) {
  if (t.device != Device::kCpu) throw InvalidArgument(std::string(name) + " must be on the CPU");
}

// A model-dtype tensor of `ndim` dimensions whose last one is contiguous.
inline void expect_rows(const TensorView& t, int ndim, const char* name) {
  expect_cpu(t, name);
  if (!is_model_float(t.dtype) || t.ndim != ndim ||
      (t.step(ndim - 1) != 1 && t.dim(ndim - 1) > 1)) {
    throw InvalidArgument(std::string(name) + " must be float32, bfloat16 or float16 with " +
                          std::to_string(ndim) + " dimensions, the last one contiguous");
  }
}

inline void expect_like(const TensorView& t, DType dtype, int64_t numel, const char* name) {
  expect_cpu(t, name);
  if (t.dtype != dtype || t.numel() != numel || !t.is_contiguous()) {
    throw InvalidArgument(std::string(name) + " must be contiguous, of the input's dtype, with " +
                          std::to_string(numel) + " elements");
  }
}

inline const int32_t* int32s(const TensorView& t, int64_t at_least, const char* name) {
  expect_cpu(t, name);
  if (t.dtype != DType::kI32 || t.numel() < at_least || !t.is_contiguous()) {
    throw InvalidArgument(std::string(name) + " must be contiguous int32 with at least " +
                          std::to_string(at_least) + " elements");
  }
  return t.ptr<int32_t>();
}

inline int32_t* int32s_out(const TensorView& t, int64_t at_least, const char* name) {
  int32s(t, at_least, name);
  return t.ptr<int32_t>();
}

inline cpu::Gate as_gate(const std::string& act) {
  if (act == "silu") return cpu::Gate::kSilu;
  if (act == "gelu") return cpu::Gate::kGelu;
  if (act == "gelu_tanh") return cpu::Gate::kGeluTanh;
  throw InvalidArgument("act must be silu, gelu or gelu_tanh, not " + act);
}

}  // namespace srt::bind
