#include "cpu/kernels.h"
#include "cpu/tile_linear.h"

namespace srt::cpu {

const Kernels& amx_kernels() {
  static const Kernels table = [] {
    Kernels kernels = avx512_kernels();
    kernels.packed_words = amx::packed_words;
    kernels.pack_tokens = amx::pack_tokens;
    kernels.tile_linear = amx::tile_linear;
    return kernels;
  }();
  return table;
}

}  // namespace srt::cpu
