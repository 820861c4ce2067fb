// Which instruction set the CPU kernels use.
#pragma once

namespace srt::cpu {

enum class Isa { kPortable, kAvx2, kAvx512, kAmx };

// The best set this machine runs, unless the environment variable SRT_CPU_ISA names one
// (portable, avx2, avx512 or amx). Read once. Throws InvalidArgument if the machine lacks it.
Isa active_isa();

const char* isa_name(Isa isa);

}  // namespace srt::cpu
