// Memory that a thread keeps from call to call.
#pragma once

#include <cstddef>

namespace srt::cpu {

enum class Scratch { kWork, kShared, kCount };

// At least `floats` floats, 64-byte aligned, contents unspecified; valid until this thread asks
// for the same kind again. kWork: inside one item. kShared: what a caller hands to its threads.
float* scratch(Scratch kind, size_t floats);

}  // namespace srt::cpu
