// What the elements of a KV cache are.
#pragma once

#include <cstdint>

namespace srt::cpu {

enum class KvFormat : uint8_t { kF32, kBF16, kF16, kE5M2, kE4M3 };

}  // namespace srt::cpu
