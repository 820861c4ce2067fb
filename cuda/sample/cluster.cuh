// Reductions over the blocks of a cluster. Every block gets the same bits. One block before sm_90.
#pragma once

#include <cooperative_groups.h>

#include "common/reduce.cuh"

namespace srt::cuda {

constexpr int kMaxCluster = 8;

__device__ __forceinline__ int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return static_cast<int>(cooperative_groups::this_cluster().block_rank());
#else
  return 0;
#endif
}

__device__ __forceinline__ int cluster_size() {
#if __CUDA_ARCH__ >= 900
  return static_cast<int>(cooperative_groups::this_cluster().num_blocks());
#else
  return 1;
#endif
}

__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#else
  __syncthreads();
#endif
}

// The halves of cluster_sync().
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// `p` of this block's shared memory as it lies in block `rank` of the cluster.
template <typename T>
__device__ __forceinline__ T* cluster_map(T* p, int rank) {
#if __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().map_shared_rank(p, static_cast<unsigned>(rank));
#else
  (void)rank;
  return p;
#endif
}

template <typename T>
__device__ __forceinline__ T shuffle_xor(const T& x, int offset) {
  static_assert(sizeof(T) % 4 == 0);
  union Words {
    __device__ Words() {}
    T value;
    int words[sizeof(T) / 4];
  } in, out;
  in.value = x;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(T) / 4); ++i)
    out.words[i] = __shfl_xor_sync(kFullWarp, in.words[i], offset);
  return out.value;
}

// Shared memory of one reducing block.
struct ClusterScratch {
  static constexpr int kSlotBytes = 32;

  alignas(16) unsigned char warps[kWarpSize][kSlotBytes];
  alignas(16) unsigned char blocks[2][kMaxCluster][kSlotBytes];
};

// Reduces values over all threads of the cluster; call it the same number of times everywhere, at
// least once, after one cluster_arrive(): the first call waits until every block runs.
// The two halves of `blocks` alternate, so that one barrier a call is enough: who passes the
// barrier of call n + 1 has read the results of call n.
class ClusterReducer {
 public:
  __device__ explicit ClusterReducer(ClusterScratch& scratch) : scratch_(scratch) {}

  template <typename T, typename Op>
  __device__ T reduce(T x, Op op) {
    static_assert(sizeof(T) <= ClusterScratch::kSlotBytes);
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int num_warps = static_cast<int>(blockDim.x) / kWarpSize;
    x = reduce_warp(x, op);
    if (lane == 0) *reinterpret_cast<T*>(scratch_.warps[warp]) = x;
    __syncthreads();  // the warps' results are written
    if (!started_) cluster_wait();
    started_ = true;
    if (warp == 0) {
      x = reduce_warp(*reinterpret_cast<const T*>(scratch_.warps[lane < num_warps ? lane : 0]), op,
                      lane < num_warps);
      auto& slot = scratch_.blocks[parity_][cluster_rank()];
      if (lane < cluster_size()) *reinterpret_cast<T*>(*cluster_map(&slot, lane)) = x;
    }
    cluster_sync();  // every block's result is in every block
    T total = *reinterpret_cast<const T*>(scratch_.blocks[parity_][0]);
    for (int rank = 1; rank < cluster_size(); ++rank)
      total = op(total, *reinterpret_cast<const T*>(scratch_.blocks[parity_][rank]));
    parity_ ^= 1;
    return total;
  }

 private:
  template <typename T, typename Op>
  __device__ static T reduce_warp(T x, Op op, bool valid = true) {
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      const T other = shuffle_xor(x, offset);
      const bool other_valid = __shfl_xor_sync(kFullWarp, static_cast<int>(valid), offset) != 0;
      if (valid && other_valid) {
        x = op(x, other);
      } else if (other_valid) {
        x = other;
      }
      valid = valid || other_valid;
    }
    return x;
  }

  ClusterScratch& scratch_;
  int parity_ = 0;
  bool started_ = false;
};

}  // namespace srt::cuda
