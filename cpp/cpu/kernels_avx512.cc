#include "cpu/kernel_table.h"

namespace srt::cpu {

const Kernels& avx512_kernels() { return avx512::kTable; }

}  // namespace srt::cpu
