// A block's work on one tile of latent rows: S = Q K^T, online softmax, O += P V, where K is the
// tile and V its first 512 columns.
//
// Shapes    kRows query rows (heads, times tokens), 32 keys a tile; rows of 576 values, 16-byte
//           aligned.
// Parallel  eight warps. Scores: warps share out rows, keys and the two halves of the 576 columns,
//           whose partial sums meet in shared memory. Output: a warp owns 64 columns of all rows.
// Numerics  products in T (fp8 rows are widened to T) with float accumulators; softmax in float; P
//           rounded to T.
#pragma once

#include "attention/kv_fp8.cuh"
#include "attention/latent.h"
#include "attention/softmax.cuh"
#include "common/mma.cuh"

namespace srt::cuda::latent {

template <typename T, int kRowsV, bool kFp8V>
struct Tile {
  static constexpr int kRows = kRowsV;
  static constexpr bool kFp8 = kFp8V;
  static constexpr int kKeys = 32;
  static constexpr int kWarps = 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kCtasPerSm = kRows == 16 ? 2 : 1;
  static constexpr int kStages = kRows == 16 ? 2 : 3;
  static constexpr int kChunks = kLatentDim / 8;                    // 16-byte pieces of a row of T
  static constexpr int kPoolChunks = kFp8 ? kChunks / 2 : kChunks;  // of a row in the pool
  static constexpr int kRowBlocks = kRows / 16;
  static constexpr int kScoreTiles = kRows == 16 ? 1 : 2;  // m16 and n8 tiles of a warp's scores
  static constexpr int kSteps = kLatentDim / 32;           // k16 steps of half the columns
  static constexpr int kScoreStride = kKeys + 8;           // floats: no bank conflicts
  static constexpr int kProbStride = 2 * kKeys + 16;       // bytes

  static constexpr int kQBytes = kRows * kChunks * 16;
  static constexpr int kTileBytes = kKeys * kChunks * 16;
  static constexpr int kPoolBytes = kKeys * kPoolChunks * 16;
  static constexpr int kScoreBytes = 2 * kRows * kScoreStride * 4;
  static constexpr int kProbBytes = kRows * kProbStride;
  static constexpr int kKeysAt = kQBytes;  // the ring; fp8: the widened tile, then the ring
  static constexpr int kRingAt = kKeysAt + (kFp8 ? kTileBytes : 0);
  static constexpr int kScoreAt = kRingAt + kStages * kPoolBytes;
  static constexpr int kProbAt = kScoreAt + kScoreBytes;
  static constexpr int kFactorAt = kProbAt + kProbBytes;
  static constexpr int kSmemBytes = kFactorAt + kRows * 4;

  static constexpr int kRowThreads = kThreads / kRows;  // threads that share a row's softmax
  static constexpr int kRowKeys = kKeys / kRowThreads;  // keys of each

  // A thread's part of the running result: its row's softmax, and its columns of the output.
  float max = -INFINITY;
  float sum = 0.0f;  // over this thread's own keys
  float o[kRowBlocks][8][4];

  unsigned char* smem;
  uint32_t base;
  int warp;
  int lane;

  __device__ __forceinline__ explicit Tile(unsigned char* shared)
      : smem(shared),
        base(ptx::smem_address(shared)),
        warp(static_cast<int>(threadIdx.x) / 32),
        lane(static_cast<int>(threadIdx.x) % 32) {}

  // XOR-swizzled in groups of eight pieces: eight neighbouring rows fall into different banks.
  __device__ __forceinline__ static uint32_t piece(int row, int chunk) {
    return static_cast<uint32_t>((row * kChunks + (chunk ^ (row % 8))) * 16);
  }
  __device__ __forceinline__ static int row() {
    return static_cast<int>(threadIdx.x) / kRowThreads;
  }

  __device__ __forceinline__ void reset() {
    max = -INFINITY;
    sum = 0.0f;
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) o[m][n][e] = 0.0f;
  }

  // Rows [0, num_rows) of q, which `row_at(row)` finds; the others become zero.
  template <typename RowAt>
  __device__ __forceinline__ void load_queries(int num_rows, RowAt row_at) {
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kChunks; i += kThreads) {
      const int r = i / kChunks;
      const int chunk = i % kChunks;
      uint4 x = make_uint4(0, 0, 0, 0);
      if (r < num_rows) x = *(reinterpret_cast<const uint4*>(row_at(r)) + chunk);
      ptx::store_shared_16(base + piece(r, chunk), x);
    }
  }

  // The page of the row that this lane looks up for its warp: rows 4 * warp + lane % 4.
  __device__ __forceinline__ int look_up(const int32_t* pages, int log2_page, int first_key,
                                         int num_keys) const {
    if (num_keys <= 0) return 0;
    const int own = min(4 * warp + lane % 4, num_keys - 1);
    return __ldg(pages + ((first_key + own) >> log2_page));
  }

  // Starts the copy of rows [first_key, first_key + num_keys) into a stage; rows behind become
  // zero, for a probability of zero times NaN is NaN. One copy group, even if empty.
  __device__ __forceinline__ void copy_keys(const char* pool, int page, int log2_page,
                                            int first_key, int num_keys, int stage) const {
    if (num_keys > 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = 4 * warp + i;
        const int key_page = __shfl_sync(0xffffffffu, page, i);
        const int64_t slot = (static_cast<int64_t>(key_page) << log2_page) +
                             ((first_key + key) & ((1 << log2_page) - 1));
        const char* src = pool + slot * (kPoolChunks * 16);
#pragma unroll
        for (int chunk = lane; chunk < kPoolChunks; chunk += 32) {
          const uint32_t at =
              kFp8 ? static_cast<uint32_t>((key * kPoolChunks + chunk) * 16) : piece(key, chunk);
          ptx::cp_async_16(base + kRingAt + stage * kPoolBytes + at, src + chunk * 16,
                           key < num_keys);
        }
      }
    }
    ptx::cp_async_commit();
  }

  // The tile of a stage as T; fp8 is widened by all threads, who then wait for each other.
  __device__ __forceinline__ uint32_t keys(int stage, KvDtype dtype) const {
    if constexpr (!kFp8) {
      return base + kRingAt + stage * kPoolBytes;
    } else {
      const uint32_t from = base + kRingAt + stage * kPoolBytes;
#pragma unroll
      for (int i = static_cast<int>(threadIdx.x); i < kKeys * kChunks; i += kThreads) {
        ptx::store_shared_16(base + kKeysAt + piece(i / kChunks, i % kChunks),
                             widen_fp8x8<T>(ptx::load_shared_8(from + i * 8), dtype));
      }
      __syncthreads();  // the widened tile stands
      return base + kKeysAt;
    }
  }

  // This warp's part of the raw scores, into shared memory.
  __device__ __forceinline__ void score(uint32_t k) const {
    const int half = warp / 4;  // of the columns
    const int row0 = kRows == 16 ? 0 : warp % 2 * 32;
    const int key0 = kRows == 16 ? warp % 4 * 8 : warp / 2 % 2 * 16;
    const int matrix = lane / 8;
    float s[kScoreTiles][kScoreTiles][4] = {};
#pragma unroll 3
    for (int pair = 0; pair < kSteps / 2; ++pair) {
      const int step = half * kSteps + 2 * pair;
      uint32_t b[2][4];  // [step of the pair]: two n8 tiles; with one n8 tile, both steps in b[0]
      if constexpr (kRows == 16) {
        ptx::ldmatrix_x4(b[0], k + piece(key0 + lane % 8, 2 * step + matrix));
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          ptx::ldmatrix_x4(
              b[i], k + piece(key0 + matrix / 2 * 8 + lane % 8, 2 * (step + i) + matrix % 2));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int m = 0; m < kScoreTiles; ++m) {
          uint32_t a[4];
          ptx::ldmatrix_x4(a, base + piece(row0 + 16 * m + matrix % 2 * 8 + lane % 8,
                                           2 * (step + i) + matrix / 2));
          if constexpr (kRows == 16) {
            ptx::mma_m16n8k16<T>(s[m][0], a, b[0][2 * i], b[0][2 * i + 1]);
          } else {
            ptx::mma_m16n8k16<T>(s[m][0], a, b[i][0], b[i][1]);
            ptx::mma_m16n8k16<T>(s[m][1], a, b[i][2], b[i][3]);
          }
        }
    }
    auto* out = reinterpret_cast<float*>(smem + kScoreAt) + half * kRows * kScoreStride;
#pragma unroll
    for (int m = 0; m < kScoreTiles; ++m)
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int at =
              (row0 + 16 * m + 8 * r + lane / 4) * kScoreStride + key0 + 8 * n + lane % 4 * 2;
          *reinterpret_cast<float2*>(out + at) = make_float2(s[m][n][2 * r], s[m][n][2 * r + 1]);
        }
  }

  // Turns the scores of this thread's row into probabilities 2^(scale_log2 * (s - max)); keys from
  // `num_visible` on have none.
  __device__ __forceinline__ void softmax(int num_visible, float scale_log2) {
    const int first = static_cast<int>(threadIdx.x) % kRowThreads * kRowKeys;
    const auto* scores =
        reinterpret_cast<const float*>(smem + kScoreAt) + row() * kScoreStride + first;
    float s[kRowKeys];
    float top = max;
#pragma unroll
    for (int i = 0; i < kRowKeys; ++i) {
      s[i] = first + i < num_visible ? scores[i] + scores[i + kRows * kScoreStride] : -INFINITY;
      top = fmaxf(top, s[i]);
    }
#pragma unroll
    for (int offset = 1; offset < kRowThreads; offset *= 2)
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
    const float seen = top == -INFINITY ? 0.0f : top;
    const float factor = ptx::exp2_approx((max - seen) * scale_log2);
    max = top;
    sum *= factor;
    auto* probs = reinterpret_cast<uint32_t*>(smem + kProbAt + row() * kProbStride + 2 * first);
#pragma unroll
    for (int i = 0; i < kRowKeys; i += 2) {
      const float lo = ptx::exp2_approx(fmaf(s[i], scale_log2, -seen * scale_log2));
      const float hi = ptx::exp2_approx(fmaf(s[i + 1], scale_log2, -seen * scale_log2));
      sum += lo + hi;
      probs[i / 2] = ptx::pack_pair<T>(lo, hi);
    }
    if (first == 0) factors()[row()] = factor;
  }

  // One float a row: what the output is rescaled with, in the end the sum of its weights.
  __device__ __forceinline__ float* factors() const {
    return reinterpret_cast<float*>(smem + kFactorAt);
  }

  __device__ __forceinline__ void accumulate(uint32_t v) {
    const int matrix = lane / 8;
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
      const float low = factors()[16 * m + lane / 4];
      const float high = factors()[16 * m + 8 + lane / 4];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        o[m][n][0] *= low;
        o[m][n][1] *= low;
        o[m][n][2] *= high;
        o[m][n][3] *= high;
      }
    }
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      uint32_t b[4][4];
#pragma unroll
      for (int n = 0; n < 4; ++n)
        ptx::ldmatrix_x4_trans(
            b[n], v + piece(step * 16 + matrix % 2 * 8 + lane % 8, 8 * warp + 2 * n + matrix / 2));
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
        uint32_t a[4];
        ptx::ldmatrix_x4(a, base + kProbAt + (16 * m + matrix % 2 * 8 + lane % 8) * kProbStride +
                                (2 * step + matrix / 2) * 16);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          ptx::mma_m16n8k16<T>(o[m][2 * n], a, b[n][0], b[n][1]);
          ptx::mma_m16n8k16<T>(o[m][2 * n + 1], a, b[n][2], b[n][3]);
        }
      }
    }
  }

  // One tile, between the barrier behind its arrival and the next.
  __device__ __forceinline__ void run(int stage, KvDtype dtype, int num_visible, float scale_log2) {
    const uint32_t k = keys(stage, dtype);
    score(k);
    __syncthreads();  // all partial scores stand
    softmax(num_visible, scale_log2);
    __syncthreads();  // probabilities and factors stand
    accumulate(k);
  }

  // Leaves the row sums in factors(); everybody has met in two barriers.
  __device__ __forceinline__ void finish_sums() {
#pragma unroll
    for (int offset = 1; offset < kRowThreads; offset *= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    __syncthreads();  // the last tile's factors have been read
    if (static_cast<int>(threadIdx.x) % kRowThreads == 0) factors()[row()] = sum;
    __syncthreads();  // all sums stand
  }

  // Calls store(row, column, x, y) for every pair of neighbouring output values of this thread.
  template <typename Store>
  __device__ __forceinline__ void for_each_pair(Store store) const {
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int n = 0; n < 8; ++n)
          store(16 * m + 8 * r + lane / 4, 64 * warp + 8 * n + lane % 4 * 2, o[m][n][2 * r],
                o[m][n][2 * r + 1]);
  }
};

}  // namespace srt::cuda::latent
