#include "cpu/scratch.h"

#include <array>
#include <cstdlib>
#include <memory>
#include <new>

namespace srt::cpu {
namespace {

constexpr size_t kAlignment = 64;

struct Free {
  void operator()(float* p) const { std::free(p); }
};

struct Block {
  std::unique_ptr<float, Free> data;
  size_t bytes = 0;
};

}  // namespace

float* scratch(Scratch kind, size_t floats) {
  thread_local std::array<Block, static_cast<size_t>(Scratch::kCount)> blocks;
  Block& block = blocks[static_cast<size_t>(kind)];
  const size_t bytes = (floats * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
  if (block.bytes < bytes) {
    block.data.reset(static_cast<float*>(std::aligned_alloc(kAlignment, bytes)));
    if (!block.data) throw std::bad_alloc();
    block.bytes = bytes;
  }
  return block.data.get();
}

}  // namespace srt::cpu
