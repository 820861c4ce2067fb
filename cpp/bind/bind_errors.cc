// C++ exceptions as Python exceptions.
#include "bind/bind.h"
#include "core/error.h"

namespace srt::bind {

namespace py = pybind11;

void bind_errors(py::module_& m) {
  // Registered last runs first: the subclasses come after their bases.
  py::register_exception<InternalError>(m, "InternalError", PyExc_RuntimeError);
  py::register_exception<CudaError>(m, "CudaError", PyExc_RuntimeError);
  py::register_exception<InvalidArgument>(m, "InvalidArgument", PyExc_ValueError);
}

}  // namespace srt::bind
