// Paged extend attention on mma.sync: every shape we serve, on sm_80 and later.
//
// Shapes    see ExtendParams; rows of q, out and the pools 16-byte aligned; any
// page size 2^n. Parallel  one block per (tile of 128 query rows, KV head),
// longest tiles first; a warp owns 32
//           rows (16 for wide heads) and walks the key tiles, which arrive by
//           cp.async.
// Bound     tensor cores: 2 * (head_dim + head_dim_v) * visible (query, key)
// pairs * num_q_heads. Numerics  scores and output accumulate in float; P is
// rounded to T for the second product.
#pragma once

#include "attention/extend.h"
#include "attention/extend_tile.cuh"
#include "attention/kv_fp8.cuh"
#include "attention/mask.cuh"
#include "attention/softmax.cuh"
#include "common/mma.cuh"

namespace srt::cuda {

// Shared-memory rows of kChunks 16-byte pieces, XOR-swizzled so that eight
// neighbouring rows of one column fall into different banks.
template <int kChunks>
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
  static_assert(kChunks % 8 == 0);
  return static_cast<uint32_t>((row * kChunks + (chunk ^ (row % 8))) * 16);
}

template <typename T, int kDimQk, int kDimV, bool kFp8>
struct ExtendMma {
  static constexpr int kRowBlocks = kDimQk > 80 ? 1 : 2;  // m16 blocks of one warp
  static constexpr int kWarps = kExtendTileRows / (16 * kRowBlocks);
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kKeys = kDimQk > 128 || kDimQk == 80 ? 32 : 64;  // keys of one tile
  static constexpr int kScoreUnroll = kDimQk > 192 ? 4 : kDimQk / 16;   // more would spill
  static constexpr int kStages = 2;
  static constexpr int kChunksQk = round_up(kDimQk, 64) / 8;  // 16-byte pieces of a padded row
  static constexpr int kChunksV = round_up(kDimV, 64) / 8;

  static constexpr int kQBytes = kExtendTileRows * kChunksQk * 16;
  static constexpr int kKBytes = kKeys * kChunksQk * 16;
  static constexpr int kVBytes = kKeys * kChunksV * 16;
  static constexpr int kTileBytes = kKBytes + kVBytes;
  static constexpr int kRawKBytes = kKeys * kDimQk;  // fp8 as it comes from the pool
  static constexpr int kRawBytes = kRawKBytes + kKeys * kDimV;
  static constexpr int kSmemBytes =
      kQBytes + (kFp8 ? kTileBytes + kStages * kRawBytes : kStages * kTileBytes);

  const ExtendParams& p;
  const uint32_t smem;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group = p.num_q_heads / p.kv.num_kv_heads;
  const ExtendTile tile;

  __device__ __forceinline__ uint32_t k_tile(int stage) const {
    return smem + kQBytes + (kFp8 ? 0 : stage * kTileBytes);
  }
  __device__ __forceinline__ uint32_t v_tile(int stage) const { return k_tile(stage) + kKBytes; }
  __device__ __forceinline__ uint32_t raw_tile(int stage) const {
    return smem + kQBytes + kTileBytes + stage * kRawBytes;
  }

  __device__ __forceinline__ void load_q() const {
    constexpr int kRowChunks = kDimQk / 8;
    const int rows = tile.num_tokens * group;
    for (int i = static_cast<int>(threadIdx.x); i < kExtendTileRows * kRowChunks; i += kThreads) {
      const int row = i / kRowChunks;
      const int chunk = i % kRowChunks;
      const bool valid = row < rows;
      const int token = tile.q_begin + (valid ? row / group : 0);
      const int head = tile.kv_head * group + (valid ? row % group : 0);
      const T* src = static_cast<const T*>(p.q) + token * p.q_token_stride +
                     head * static_cast<int64_t>(kDimQk) + chunk * 8;
      ptx::cp_async_16(smem + swizzled<kChunksQk>(row, chunk), src, valid);
    }
  }

  // Starts the copy of one tensor's key tile; keys past the sequence's end
  // become zeros, so that what stands in the rest of its last page cannot reach
  // the products.
  template <int kDim, int kElementBytes>
  __device__ __forceinline__ void load_rows(const void* pool, int key_tile, uint32_t dst) const {
    constexpr int kRowChunks = kDim * kElementBytes / 16;
    constexpr int kSwizzledChunks = round_up(kDim, 64) / 8;
    const int log2_page = p.kv.log2_page_size;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * kRowChunks; i += kThreads) {
      const int row = i / kRowChunks;
      const int chunk = i % kRowChunks;
      const int key = key_tile * kKeys + row;
      const bool valid = key < tile.seq_len;
      const int64_t page = valid ? tile.pages[key >> log2_page] : 0;
      const int64_t page_head = page * p.kv.num_kv_heads + tile.kv_head;
      const int64_t slot = (page_head << log2_page) + (key & ((1 << log2_page) - 1));
      const char* src = static_cast<const char*>(pool) + (slot * kRowChunks + chunk) * int64_t{16};
      const uint32_t offset = kElementBytes == 2 ? swizzled<kSwizzledChunks>(row, chunk)
                                                 : static_cast<uint32_t>(i * 16);
      ptx::cp_async_16(dst + offset, src, valid);
    }
  }

  __device__ __forceinline__ void load_tile(int key_tile, int stage) const {
    if constexpr (kFp8) {
      load_rows<kDimQk, 1>(p.kv.k, key_tile, raw_tile(stage));
      load_rows<kDimV, 1>(p.kv.v, key_tile, raw_tile(stage) + kRawKBytes);
    } else {
      load_rows<kDimQk, 2>(p.kv.k, key_tile, k_tile(stage));
      load_rows<kDimV, 2>(p.kv.v, key_tile, v_tile(stage));
    }
  }

  template <int kDim>
  __device__ __forceinline__ void widen_rows(uint32_t src, uint32_t dst) const {
    constexpr int kRowChunks = kDim / 8;
    constexpr int kSwizzledChunks = round_up(kDim, 64) / 8;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * kRowChunks; i += kThreads) {
      const uint2 x = ptx::load_shared_8(src + i * 8);
      ptx::store_shared_16(dst + swizzled<kSwizzledChunks>(i / kRowChunks, i % kRowChunks),
                           widen_fp8x8<T>(x, p.kv.dtype));
    }
  }

  // s = q k^T for this warp's rows.
  __device__ __forceinline__ void score(float (&s)[kRowBlocks][kKeys / 2], uint32_t k) const {
    const int matrix = lane / 8;
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) s[m][i] = 0.0f;
#pragma unroll kScoreUnroll
    for (int step = 0; step < kDimQk / 16; ++step) {
      uint32_t a[kRowBlocks][4];
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
        const int row = (warp * kRowBlocks + m) * 16 + (matrix % 2) * 8 + lane % 8;
        ptx::ldmatrix_x4(a[m], smem + swizzled<kChunksQk>(row, 2 * step + matrix / 2));
      }
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t b[4];
        const int row = n * 16 + (matrix / 2) * 8 + lane % 8;
        ptx::ldmatrix_x4(b, k + swizzled<kChunksQk>(row, 2 * step + matrix % 2));
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m) {
          ptx::mma_m16n8k16<T>(&s[m][8 * n], a[m], b[0], b[1]);
          ptx::mma_m16n8k16<T>(&s[m][8 * n + 4], a[m], b[2], b[3]);
        }
      }
    }
  }

  // o += p v, with p taken from the score fragments.
  __device__ __forceinline__ void accumulate(float (&o)[kRowBlocks][kDimV / 2],
                                             const float (&s)[kRowBlocks][kKeys / 2],
                                             uint32_t v) const {
    const int matrix = lane / 8;
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      uint32_t a[kRowBlocks][4];
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[m][i] = ptx::pack_pair<T>(s[m][8 * step + 2 * i], s[m][8 * step + 2 * i + 1]);
#pragma unroll
      for (int n = 0; n < kDimV / 16; ++n) {
        uint32_t b[4];
        const int row = step * 16 + (matrix % 2) * 8 + lane % 8;
        ptx::ldmatrix_x4_trans(b, v + swizzled<kChunksV>(row, 2 * n + matrix / 2));
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m) {
          ptx::mma_m16n8k16<T>(&o[m][8 * n], a[m], b[0], b[1]);
          ptx::mma_m16n8k16<T>(&o[m][8 * n + 4], a[m], b[2], b[3]);
        }
      }
    }
  }

  // Scales one row block, turns it from fragments into rows through the warp's
  // own part of the q tile, and writes it with whole 16-byte pieces.
  __device__ __forceinline__ void store(float (&o)[kDimV / 2], const SoftmaxState& state, int block,
                                        float scale_log2) const {
    float inverse[2];
    float lse[2];
    finish_softmax(state, scale_log2, inverse, lse);
    if constexpr (kFp8) {
      inverse[0] *= p.kv.v_scale;
      inverse[1] *= p.kv.v_scale;
    }
    const int first_row = (warp * kRowBlocks + block) * 16;
    const int rows = tile.num_tokens * group;
#pragma unroll
    for (int i = 0; i < kDimV / 2; i += 2) {
      const int r = (i / 2) % 2;
      const int row = first_row + lane / 4 + 8 * r;
      ptx::store_shared_4(smem + swizzled<kChunksQk>(row, i / 4) + (lane % 4) * 4,
                          ptx::pack_pair<T>(o[i] * inverse[r], o[i + 1] * inverse[r]));
    }
    __syncwarp();  // the warp's rows stand before its lanes read them across
    constexpr int kRowChunks = kDimV / 8;
    for (int i = lane; i < 16 * kRowChunks; i += 32) {
      const int row = first_row + i / kRowChunks;
      const int chunk = i % kRowChunks;
      if (row >= rows) break;
      const int64_t token = tile.q_begin + row / group;
      const int64_t head = tile.kv_head * group + row % group;
      T* dst = static_cast<T*>(p.out) + token * p.out_token_stride + head * kDimV + chunk * 8;
      *reinterpret_cast<uint4*>(dst) = ptx::load_shared_16(smem + swizzled<kChunksQk>(row, chunk));
    }
    if (p.lse == nullptr || lane % 4 != 0) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + lane / 4 + 8 * r;
      if (row >= rows) continue;
      const int64_t head = tile.kv_head * group + row % group;
      p.lse[head * p.lse_stride + tile.q_begin + row / group] = lse[r];
    }
  }

  __device__ __forceinline__ void run() {
    const float scale = p.scoring.scale * (kFp8 ? p.kv.k_scale : 1.0f);
    const bool capped = p.scoring.softcap > 0.0f;
    const float scale_log2 = (capped ? p.scoring.softcap : scale) * kLog2e;
    const float inner_scale = capped ? scale / p.scoring.softcap : 0.0f;
    const TileRange range = tile_range<kKeys>(p.scoring, tile.position,
                                              tile.position + tile.num_tokens - 1, tile.seq_len);
    float o[kRowBlocks][kDimV / 2] = {};
    SoftmaxState state[kRowBlocks];

    load_q();
    if (range.begin < range.end) load_tile(range.begin, 0);
    ptx::cp_async_commit();
    int stage = 0;
    for (int n = range.begin; n < range.end; ++n, stage ^= 1) {
      ptx::cp_async_wait<0>();
      __syncthreads();  // tile n has arrived for everyone, and nobody still
                        // reads tile n - 1
      if (n + 1 < range.end) load_tile(n + 1, stage ^ 1);
      ptx::cp_async_commit();
      if constexpr (kFp8) {
        widen_rows<kDimQk>(raw_tile(stage), k_tile(stage));
        widen_rows<kDimV>(raw_tile(stage) + kRawKBytes, v_tile(stage));
        __syncthreads();  // the widened tile stands
      }
      float s[kRowBlocks][kKeys / 2];
      score(s, k_tile(stage));
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
        if (capped) apply_softcap(s[m], inner_scale);
        if (range.needs_mask(n)) mask_block(s[m], m, n * kKeys);
        float rescale[2];
        online_softmax(s[m], state[m], scale_log2, rescale);
        rescale_rows(o[m], rescale);
      }
      accumulate(o, s, v_tile(stage));
    }
    ptx::cp_async_wait<0>();
    __syncthreads();  // also where no key was visible: q's copy is over before
                      // its place is reused
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) store(o[m], state[m], m, scale_log2);
  }

  __device__ __forceinline__ void mask_block(float (&s)[kKeys / 2], int block,
                                             int first_key) const {
    const int row = (warp * kRowBlocks + block) * 16 + lane / 4;
    const KeyRange keys[2] = {
        visible_keys(p.scoring, tile.position + row / group, tile.seq_len),
        visible_keys(p.scoring, tile.position + (row + 8) / group, tile.seq_len)};
    apply_mask(s, keys, first_key + 2 * (lane % 4));
  }
};

template <typename T, int kDimQk, int kDimV, bool kFp8>
__global__ void __launch_bounds__(ExtendMma<T, kDimQk, kDimV, kFp8>::kThreads)
    extend_mma_kernel(const __grid_constant__ ExtendParams p) {
  using Kernel = ExtendMma<T, kDimQk, kDimV, kFp8>;
  extern __shared__ __align__(128) unsigned char smem[];
  const int idx = static_cast<int>(blockIdx.x);
  if (idx >= p.plan[0]) return;
  Kernel{.p = p, .smem = ptx::smem_address(smem), .tile = planned_tile(p, idx)}.run();
}

template <typename T, int kDimQk, int kDimV, bool kFp8>
cudaError_t launch_extend_mma(const ExtendParams& p, cudaStream_t stream) {
  using Kernel = ExtendMma<T, kDimQk, kDimV, kFp8>;
  const int64_t items =
      extend_max_items(p.num_tokens, p.num_seqs, p.num_q_heads, p.kv.num_kv_heads);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(items)),
                          .block = dim3(Kernel::kThreads),
                          .smem_bytes = Kernel::kSmemBytes};
  return launch(&extend_mma_kernel<T, kDimQk, kDimV, kFp8>, shape, stream, p);
}

// The four kernels of one head size.
template <int kDimQk, int kDimV>
cudaError_t dispatch_extend_mma(const ExtendParams& p, cudaStream_t stream) {
  const bool fp8 = p.kv.dtype != KvDtype::kSame;
  if (p.dtype == Dtype::kBF16) {
    return fp8 ? launch_extend_mma<__nv_bfloat16, kDimQk, kDimV, true>(p, stream)
               : launch_extend_mma<__nv_bfloat16, kDimQk, kDimV, false>(p, stream);
  }
  if (p.dtype != Dtype::kF16) return cudaErrorInvalidValue;
  return fp8 ? launch_extend_mma<__half, kDimQk, kDimV, true>(p, stream)
             : launch_extend_mma<__half, kDimQk, kDimV, false>(p, stream);
}

cudaError_t extend_mma_d64(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_mma_d80(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_mma_d96(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_mma_d128(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_mma_d192(const ExtendParams& p, cudaStream_t stream);
cudaError_t extend_mma_d256(const ExtendParams& p, cudaStream_t stream);

}  // namespace srt::cuda
