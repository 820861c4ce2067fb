#include "cpu/kernels.h"

#include "cpu/isa.h"

namespace srt::cpu {
namespace {

const Kernels& choose() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::kAmx:
      return amx_kernels();
    case Isa::kAvx512:
      return avx512_kernels();
    case Isa::kAvx2:
      return avx2_kernels();
    default:
      return portable_kernels();
  }
#else
  return portable_kernels();
#endif
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace srt::cpu
