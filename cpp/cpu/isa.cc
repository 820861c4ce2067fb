#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <string>

#include "core/error.h"

namespace srt::cpu {
namespace {

#if defined(__x86_64__)
// AMX tiles with bf16 products, which Linux lends a process that asks for their registers.
bool has_tiles() {
#if defined(__linux__)
  constexpr unsigned kBf16 = 1U << 22, kTile = 1U << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & kBf16) == 0 || (d & kTile) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

bool is_supported(Isa isa) {
  if (isa == Isa::kPortable) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (isa == Isa::kAvx2 || !avx2) return avx2;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return isa == Isa::kAvx512 || !avx512 ? avx512 : has_tiles();
#else
  return false;
#endif
}

Isa choose() {
  const char* wanted = std::getenv("SRT_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    for (const Isa isa : {Isa::kAmx, Isa::kAvx512, Isa::kAvx2}) {
      if (is_supported(isa)) return isa;
    }
    return Isa::kPortable;
  }
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    if (std::string(wanted) != isa_name(isa)) continue;
    expect(is_supported(isa), "SRT_CPU_ISA=" + std::string(wanted) + ": this CPU lacks it");
    return isa;
  }
  throw InvalidArgument("SRT_CPU_ISA is " + std::string(wanted) +
                        ", must be portable, avx2, avx512 or amx");
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAmx:
      return "amx";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace srt::cpu
