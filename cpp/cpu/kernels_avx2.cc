#include "cpu/kernel_table.h"

namespace srt::cpu {

const Kernels& avx2_kernels() { return avx2::kTable; }

}  // namespace srt::cpu
