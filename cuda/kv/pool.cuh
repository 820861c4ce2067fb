// Where a slot lies in a pool tensor, and how a value is stored there.
#pragma once

#include "common/fp8.cuh"
#include "common/vec.cuh"
#include "rope/rotary.h"

namespace srt::cuda {

// Elements before (slot, head) in [num_pages, num_heads, page_size, head_dim].
__device__ __forceinline__ int64_t pool_offset(int slot, int head, int num_heads, int page_size,
                                               int head_dim) {
  const int page = slot / page_size;
  const int64_t row = (static_cast<int64_t>(page) * num_heads + head) * page_size;
  return (row + slot % page_size) * head_dim;
}

// 8 values, as T would hold them, to `offset` of the pool: as they are, or divided by scale in fp8.
template <typename T>
__device__ __forceinline__ void store_pool(void* cache, int64_t offset, KvFormat format,
                                           float scale, float (&x)[8]) {
  if (format == KvFormat::kSame) {
    store_floats(static_cast<T*>(cache) + offset, x);
    return;
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) x[j] = __fdiv_rn(rounded<T>(x[j]), scale);
  uint8_t* const bytes = static_cast<uint8_t*>(cache) + offset;
  if (format == KvFormat::kE4M3) {
    store_fp8_vec<Fp8::kE4M3>(bytes, x);
  } else {
    store_fp8_vec<Fp8::kE5M2>(bytes, x);
  }
}

}  // namespace srt::cuda
