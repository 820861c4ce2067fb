#include "bind/bind.h"

namespace srt::bind {

void bind_cpu(pybind11::module_& /*m*/) {}

}  // namespace srt::bind
