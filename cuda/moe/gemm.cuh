// One tile of a grouped GEMM: y[rows of an expert, kCols outputs] = x w^T, with mma.sync.
//
// Shapes    rows of x and w 16-byte aligned, the contracted size a multiple of 8.
// Parallel  a block per (tile of the plan, kCols rows of w); both operands arrive by cp.async in a
//           ring of stages of 64 columns. Blocks beyond the plan's tiles end at once.
// Bound     few rows: HBM, the chosen experts' weights once (a tile of 16 rows). Many: the tensor
//           cores, 2 * choices * in * out.
// Numerics  float accumulators; gate, up and the activation in float; one rounding to T.
#pragma once

#include <cmath>

#include "common/mma.cuh"
#include "common/ptx.cuh"
#include "moe/plan.cuh"

namespace srt::cuda::moe {

struct GemmArgs {
  const void* x;
  const void* w;  // [num_experts, w_rows, in]
  void* y;        // [choices, out]
  int32_t* plan;
  MoeShape shape;
  int64_t x_stride;
  int in;
  int out;       // gated: w has 2 * out rows, gate's before up's
  int row_step;  // x's row of sorted row r: choice[r] / row_step; 0: r itself
  int num_col_tiles;
  MoeAct act;
};

template <typename T, int kRowsV, int kColsV, int kWarpsM, int kWarpsN, int kStagesV, bool kGated>
struct Gemm {
  static constexpr int kRows = kRowsV;
  static constexpr int kCols = kColsV;  // rows of w
  static constexpr int kOutCols = kGated ? kCols / 2 : kCols;
  static constexpr int kDepth = 64;
  static constexpr int kStages = kStagesV;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kXBytes = kRows * kDepth * 2;
  static constexpr int kStageBytes = kXBytes + kCols * kDepth * 2;
  static constexpr int kSmemBytes = kStages * kStageBytes;
  static constexpr int kRowBlocks = kRows / kWarpsM / 16;  // m16 tiles of a warp
  static constexpr int kColBlocks = kCols / kWarpsN / 16;  // pairs of n8 tiles; gated: gate and up
  static constexpr int kRowStep = kThreads / 8;            // rows between a thread's pieces
  static constexpr int kXPieces = div_up(kRows, kRowStep);
  static constexpr int kWPieces = kCols / kRowStep;
  static_assert(kCols % kRowStep == 0 && kRowBlocks > 0 && kColBlocks > 0);

  const GemmArgs& a;
  const uint32_t smem;
  const int4 tile;  // expert, first row, rows
  const int col_tile;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const T* x_rows[kXPieces];
  const T* w_rows[kWPieces];  // nullptr beyond the matrix

  // Eight 16-byte pieces a row, swizzled so that ldmatrix meets no bank twice.
  __device__ __forceinline__ static uint32_t piece(int row, int chunk) {
    return static_cast<uint32_t>((row * 8 + (chunk ^ (row % 8))) * 16);
  }

  // The row of w behind row r of the tile: gated, eight rows of gate and their eight of up in turn.
  __device__ __forceinline__ int w_row(int r) const {
    if constexpr (!kGated) return col_tile * kCols + r;
    const int column = col_tile * kOutCols + r / 16 * 8 + r % 8;
    return column < a.out ? column + (r % 16 < 8 ? 0 : a.out) : 2 * a.out;
  }

  __device__ __forceinline__ void find_rows() {
    const Plan plan(a.plan, a.shape);
    const int first = static_cast<int>(threadIdx.x) / 8;
    const int num_w_rows = kGated ? 2 * a.out : a.out;
#pragma unroll
    for (int i = 0; i < kXPieces; ++i) {
      const int r = first + i * kRowStep;
      const int sorted = tile.y + min(r, tile.z - 1);
      const int64_t row = a.row_step == 0 ? sorted : plan.choice[sorted] / a.row_step;
      x_rows[i] = static_cast<const T*>(a.x) + row * a.x_stride;
    }
#pragma unroll
    for (int i = 0; i < kWPieces; ++i) {
      const int row = w_row(first + i * kRowStep);
      const int64_t at = static_cast<int64_t>(tile.x) * num_w_rows + row;
      w_rows[i] = row < num_w_rows ? static_cast<const T*>(a.w) + at * a.in : nullptr;
    }
  }

  __device__ __forceinline__ void copy(int block, int stage) const {
    const int chunk = static_cast<int>(threadIdx.x) % 8;
    const int first = static_cast<int>(threadIdx.x) / 8;
    const int column = block * kDepth + chunk * 8;
    const bool inside = column < a.in;
    const uint32_t base = smem + stage * kStageBytes;
#pragma unroll
    for (int i = 0; i < kWPieces; ++i) {
      const bool valid = inside && w_rows[i] != nullptr;
      ptx::cp_async_16(base + kXBytes + piece(first + i * kRowStep, chunk),
                       valid ? w_rows[i] + column : static_cast<const T*>(a.w), valid);
    }
#pragma unroll
    for (int i = 0; i < kXPieces; ++i) {
      const int row = first + i * kRowStep;
      if (kRows % kRowStep != 0 && row >= kRows) continue;
      ptx::cp_async_16(base + piece(row, chunk), inside ? x_rows[i] + column : x_rows[i], inside);
    }
  }

  __device__ __forceinline__ void multiply(float (&acc)[kRowBlocks][kColBlocks][2][4],
                                           int stage) const {
    const uint32_t x = smem + stage * kStageBytes;
    const uint32_t w = x + kXBytes;
    const int row0 = warp / kWarpsN * (kRows / kWarpsM);
    const int col0 = warp % kWarpsN * (kCols / kWarpsN);
    const int matrix = lane / 8;
#pragma unroll
    for (int step = 0; step < kDepth / 16; ++step) {
      uint32_t rows[kRowBlocks][4];
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m)
        ptx::ldmatrix_x4(
            rows[m], x + piece(row0 + 16 * m + matrix % 2 * 8 + lane % 8, 2 * step + matrix / 2));
#pragma unroll
      for (int n = 0; n < kColBlocks; ++n) {
        uint32_t b[4];
        ptx::ldmatrix_x4(
            b, w + piece(col0 + 16 * n + matrix / 2 * 8 + lane % 8, 2 * step + matrix % 2));
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m) {
          ptx::mma_m16n8k16<T>(acc[m][n][0], rows[m], b[0], b[1]);
          ptx::mma_m16n8k16<T>(acc[m][n][1], rows[m], b[2], b[3]);
        }
      }
    }
  }

  __device__ __forceinline__ static float activate(float x, MoeAct act) {
    if (act == MoeAct::kSilu) return x / (1.0f + __expf(-x));
    if (act == MoeAct::kGeluErf) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    const float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
  }

  __device__ __forceinline__ void store(const float (&acc)[kRowBlocks][kColBlocks][2][4]) const {
    const int row0 = warp / kWarpsN * (kRows / kWarpsM);
    const int col0 = col_tile * kOutCols + warp % kWarpsN * (kOutCols / kWarpsN);
    auto* y = static_cast<T*>(a.y);
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = row0 + 16 * m + 8 * r + lane / 4;
        if (row >= tile.z) continue;
        T* const out = y + static_cast<int64_t>(tile.y + row) * a.out;
#pragma unroll
        for (int n = 0; n < kColBlocks; ++n) {
          const float* first = acc[m][n][0] + 2 * r;
          const float* second = acc[m][n][1] + 2 * r;
          if constexpr (kGated) {
            const int column = col0 + 8 * n + lane % 4 * 2;
            if (column < a.out)
              *reinterpret_cast<uint32_t*>(out + column) = ptx::pack_pair<T>(
                  activate(first[0], a.act) * second[0], activate(first[1], a.act) * second[1]);
          } else {
            const int column = col0 + 16 * n + lane % 4 * 2;
            if (column < a.out)
              *reinterpret_cast<uint32_t*>(out + column) = ptx::pack_pair<T>(first[0], first[1]);
            if (column + 8 < a.out)
              *reinterpret_cast<uint32_t*>(out + column + 8) =
                  ptx::pack_pair<T>(second[0], second[1]);
          }
        }
      }
  }

  __device__ __forceinline__ void run() {
    find_rows();
    const int num_blocks = div_up(a.in, kDepth);
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      if (i < num_blocks) copy(i, i);
      ptx::cp_async_commit();
    }
    float acc[kRowBlocks][kColBlocks][2][4] = {};
    int stage = 0;
    for (int block = 0; block < num_blocks; ++block) {
      ptx::cp_async_wait<kStages - 2>();
      __syncthreads();  // the stage has arrived, and nobody reads the one before it any more
      const int next = block + kStages - 1;
      if (next < num_blocks) copy(next, stage == 0 ? kStages - 1 : stage - 1);
      ptx::cp_async_commit();
      multiply(acc, stage);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    store(acc);
  }
};

template <typename T, int kRows, int kCols, int kWarpsM, int kWarpsN, int kStages, bool kGated>
__global__ void __launch_bounds__(32 * kWarpsM * kWarpsN)
    gemm_kernel(const __grid_constant__ GemmArgs a) {
  using Kernel = Gemm<T, kRows, kCols, kWarpsM, kWarpsN, kStages, kGated>;
  extern __shared__ __align__(128) unsigned char smem[];
  ptx::grid_launch();
  ptx::grid_wait();
  const int tile = static_cast<int>(blockIdx.x) / a.num_col_tiles;
  if (tile >= a.plan[0]) return;
  const int4 record = reinterpret_cast<const int4*>(a.plan + kMoePlanHeader)[tile];
  Kernel{.a = a,
         .smem = ptx::smem_address(smem),
         .tile = record,
         .col_tile = static_cast<int>(blockIdx.x) % a.num_col_tiles,
         .x_rows = {},
         .w_rows = {}}
      .run();
}

template <typename T, int kRows, int kCols, int kWarpsM, int kWarpsN, int kStages, bool kGated>
cudaError_t launch_gemm(GemmArgs args, bool pdl, cudaStream_t stream) {
  using Kernel = Gemm<T, kRows, kCols, kWarpsM, kWarpsN, kStages, kGated>;
  args.num_col_tiles = div_up(args.out, Kernel::kOutCols);
  const int64_t blocks = static_cast<int64_t>(args.shape.max_tiles()) * args.num_col_tiles;
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(blocks)),
                          .block = dim3(Kernel::kThreads),
                          .smem_bytes = Kernel::kSmemBytes,
                          .pdl = pdl};
  return launch(gemm_kernel<T, kRows, kCols, kWarpsM, kWarpsN, kStages, kGated>, shape, stream,
                args);
}

// Tile shapes by rows; docs/kernels.md has what they reach.
template <typename T, bool kGated>
cudaError_t dispatch_gemm(const GemmArgs& args, bool pdl, cudaStream_t stream) {
  switch (args.shape.tile_rows()) {
    case 16:
      return launch_gemm<T, 16, 64, 1, 4, 6, kGated>(args, pdl, stream);
    case 64:
      return launch_gemm<T, 64, 128, 2, 4, 4, kGated>(args, pdl, stream);
    default:
      return launch_gemm<T, 128, 128, 2, 4, 4, kGated>(args, pdl, stream);
  }
}

cudaError_t gemm_bf16(const GemmArgs& args, bool gated, bool pdl, cudaStream_t stream);
cudaError_t gemm_f16(const GemmArgs& args, bool gated, bool pdl, cudaStream_t stream);

}  // namespace srt::cuda::moe
