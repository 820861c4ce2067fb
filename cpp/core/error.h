// The three exception classes of the native code, and the check that throws the third.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace srt {

// The caller passed something that can never work; becomes ValueError.
class InvalidArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// Our own bookkeeping is broken; becomes RuntimeError.
class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// A CUDA call failed; becomes RuntimeError.
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace detail {
[[noreturn]] inline void fail_check(const char* file, int line, const char* cond,
                                    const std::string& why) {
  std::ostringstream out;
  out << file << ":" << line << ": " << cond << " does not hold: " << why;
  throw InternalError(out.str());
}
}  // namespace detail

// Throws InvalidArgument with `why` unless `ok`.
inline void expect(bool ok, const std::string& why) {
  if (!ok) throw InvalidArgument(why);
}
// The same without building a string on the happy path.
inline void expect(bool ok, const char* why) {
  if (!ok) throw InvalidArgument(why);
}

}  // namespace srt

// Broken invariants throw; nothing in this project calls abort() or exit().
#define SRT_CHECK(cond, why)                                                \
  do {                                                                      \
    if (!(cond)) ::srt::detail::fail_check(__FILE__, __LINE__, #cond, why); \
  } while (0)
