// Copies and arrivals that reach the other CTAs of a cluster.
#pragma once

#include "common/hopper.cuh"

namespace srt::cuda::hopper {

constexpr uint64_t kEvictNormal = 0x1000000000000000ull;  // createpolicy.fractional encoding

// load_box() into every CTA of the cluster whose bit is set in `ranks`, at the same offsets of its
// shared memory; each one's barrier counts the bytes.
__device__ __forceinline__ void load_box_multicast(uint32_t smem, const CUtensorMap* map,
                                                   uint32_t bar, int column, int row,
                                                   uint16_t ranks, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(smem),
      "l"(map), "r"(bar), "r"(column), "r"(row), "h"(ranks), "l"(policy)
      : "memory");
}

// Arrives at a barrier of a CTA of the cluster, at the address map_to_rank() gives. Orders nothing
// beyond this CTA: a wider release would wait for memory at each call.
__device__ __forceinline__ void barrier_arrive_remote(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}

}  // namespace srt::cuda::hopper
