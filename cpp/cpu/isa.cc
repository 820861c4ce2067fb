#include "cpu/isa.h"

#include <cstdlib>
#include <string>

#include "core/error.h"

namespace srt::cpu {
namespace {

bool is_supported(Isa isa) {
  if (isa == Isa::kPortable) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (isa == Isa::kAvx2 || !avx2) return avx2;
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

Isa choose() {
  const char* wanted = std::getenv("SRT_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    for (const Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
      if (is_supported(isa)) return isa;
    }
    return Isa::kPortable;
  }
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (std::string(wanted) != isa_name(isa)) continue;
    expect(is_supported(isa), "SRT_CPU_ISA=" + std::string(wanted) + ": this CPU lacks it");
    return isa;
  }
  throw InvalidArgument("SRT_CPU_ISA is " + std::string(wanted) +
                        ", must be portable, avx2 or avx512");
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace srt::cpu
