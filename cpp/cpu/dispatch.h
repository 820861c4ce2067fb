// From a runtime dtype to a compile-time storage type.
#pragma once

#include "core/tensor_view.h"
#include "cpu/kv_format.h"
#include "cpu/scalar.h"

namespace srt::cpu::SRT_ISA {

template <typename T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) for f32, bf16 or f16; the bindings let nothing else through.
template <typename F>
inline void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBF16:
      return f(Type<BF16>{});
    case DType::kF16:
      return f(Type<F16>{});
    default:
      return f(Type<float>{});
  }
}

template <typename F>
inline void with_kv_type(KvFormat format, F&& f) {
  switch (format) {
    case KvFormat::kBF16:
      return f(Type<BF16>{});
    case KvFormat::kF16:
      return f(Type<F16>{});
    case KvFormat::kE5M2:
      return f(Type<E5M2>{});
    case KvFormat::kE4M3:
      return f(Type<E4M3>{});
    default:
      return f(Type<float>{});
  }
}

}  // namespace srt::cpu::SRT_ISA
