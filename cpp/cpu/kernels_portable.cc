#include "cpu/kernel_table.h"

namespace srt::cpu {

const Kernels& portable_kernels() { return portable::kTable; }

}  // namespace srt::cpu
