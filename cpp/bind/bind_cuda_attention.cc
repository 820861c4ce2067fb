#include "bind/bind.h"

namespace srt::bind {

void bind_cuda_attention(pybind11::module_& /*m*/) {}

}  // namespace srt::bind
