#include "bind/bind.h"

namespace srt::bind {

void bind_scheduler(pybind11::module_& /*m*/) {}

}  // namespace srt::bind
