// One tile of a grouped GEMM: y[rows of an expert, kCols outputs] = x w^T, with mma.sync.
//
// Shapes    rows of x and w 16-byte aligned, the contracted size a multiple of 8, with weights in
//           e4m3 of 16.
// Parallel  a block per (tile of the plan, kCols rows of w); both operands arrive by cp.async in a
//           ring of stages of kDepth columns. Blocks beyond the plan's tiles end at once.
// Bound     few rows: HBM, the chosen experts' weights once (a tile of 16 rows). Many: the tensor
//           cores, 2 * choices * in * out.
// Numerics  float accumulators; gate, up and the activation in float; one rounding to T. e4m3 is
//           widened to T exactly; its scales multiply sums in float: whole ones, or those of 128
//           columns where weights are scaled in blocks.
#pragma once

#include <cmath>

#include "common/ptx.cuh"
#include "moe/plan.cuh"
#include "moe/stage.cuh"

namespace srt::cuda::moe {

struct GemmArgs {
  const void* x;
  const void* w;          // [num_experts, w_rows, in]
  const float* w_scales;  // e4m3: [num_experts, w_rows, scale_columns]
  void* y;                // [choices, out]
  int32_t* plan;
  MoeShape shape;
  int64_t x_stride;
  int in;
  int out;       // gated: w has 2 * out rows, gate's before up's
  int row_step;  // x's row of sorted row r: choice[r] / row_step; 0: r itself
  int num_col_tiles;
  int scale_columns;  // 1, or one for each 128 columns of w
  MoeAct act;
};

template <typename T, bool kFp8, int kRowsV, int kColsV, int kDepth, int kWarpsM, int kWarpsN,
          int kStagesV, bool kGated>
struct Gemm {
  using Stage = moe::Stage<T, kFp8, kDepth>;
  using W = std::conditional_t<kFp8, uint8_t, T>;
  static constexpr int kRows = kRowsV;
  static constexpr int kCols = kColsV;  // rows of w
  static constexpr int kOutCols = kGated ? kCols / 2 : kCols;
  static constexpr int kStages = kStagesV;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kXBytes = kRows * Stage::kXRowBytes;
  static constexpr int kStageBytes = kXBytes + kCols * Stage::kWRowBytes;
  static constexpr int kSmemBytes = kStages * kStageBytes;
  static constexpr int kRowBlocks = kRows / kWarpsM / 16;  // m16 tiles of a warp
  static constexpr int kColBlocks = kCols / kWarpsN / 16;  // pairs of n8 tiles; gated: gate and up
  static constexpr int kXStep = kThreads / Stage::kXChunks;  // rows between a thread's pieces
  static constexpr int kWStep = kThreads / Stage::kWChunks;
  static constexpr int kXPieces = div_up(kRows, kXStep);
  static constexpr int kWPieces = kCols / kWStep;
  static_assert(kCols % kWStep == 0 && kRowBlocks > 0 && kColBlocks > 0);
  using Sums = float[kRowBlocks][kColBlocks][2][4];

  const GemmArgs& a;
  const uint32_t smem;
  const int4 tile;  // expert, first row, rows
  const int col_tile;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const T* x_rows[kXPieces];
  const W* w_rows[kWPieces];  // nullptr beyond the matrix

  // The row of w behind row r of the tile: gated, eight rows of gate and their eight of up in turn.
  __device__ __forceinline__ int w_row(int r) const {
    if constexpr (!kGated) return col_tile * kCols + r;
    const int column = col_tile * kOutCols + r / 16 * 8 + r % 8;
    return column < a.out ? column + (r % 16 < 8 ? 0 : a.out) : 2 * a.out;
  }

  __device__ __forceinline__ void find_rows() {
    const Plan plan(a.plan, a.shape);
    const int num_w_rows = kGated ? 2 * a.out : a.out;
#pragma unroll
    for (int i = 0; i < kXPieces; ++i) {
      const int r = static_cast<int>(threadIdx.x) / Stage::kXChunks + i * kXStep;
      const int sorted = tile.y + min(r, tile.z - 1);
      const int64_t row = a.row_step == 0 ? sorted : plan.choice[sorted] / a.row_step;
      x_rows[i] = static_cast<const T*>(a.x) + row * a.x_stride;
    }
#pragma unroll
    for (int i = 0; i < kWPieces; ++i) {
      const int row = w_row(static_cast<int>(threadIdx.x) / Stage::kWChunks + i * kWStep);
      const int64_t at = static_cast<int64_t>(tile.x) * num_w_rows + row;
      w_rows[i] = row < num_w_rows ? static_cast<const W*>(a.w) + at * a.in : nullptr;
    }
  }

  __device__ __forceinline__ void copy(int block, int stage) const {
    const uint32_t base = smem + stage * kStageBytes;
    const int w_chunk = static_cast<int>(threadIdx.x) % Stage::kWChunks;
    const int w_column = block * kDepth + w_chunk * (16 / Stage::kWItem);
#pragma unroll
    for (int i = 0; i < kWPieces; ++i) {
      const int row = static_cast<int>(threadIdx.x) / Stage::kWChunks + i * kWStep;
      const bool valid = w_column < a.in && w_rows[i] != nullptr;
      ptx::cp_async_16(base + kXBytes + Stage::w_piece(row, w_chunk),
                       valid ? w_rows[i] + w_column : static_cast<const W*>(a.w), valid);
    }
    const int chunk = static_cast<int>(threadIdx.x) % Stage::kXChunks;
    const int column = block * kDepth + chunk * 8;
    const bool inside = column < a.in;
#pragma unroll
    for (int i = 0; i < kXPieces; ++i) {
      const int row = static_cast<int>(threadIdx.x) / Stage::kXChunks + i * kXStep;
      if (kRows % kXStep != 0 && row >= kRows) continue;
      ptx::cp_async_16(base + Stage::x_piece(row, chunk), inside ? x_rows[i] + column : x_rows[i],
                       inside);
    }
  }

  __device__ __forceinline__ void multiply(Sums& acc, int stage) const {
    const uint32_t x = smem + stage * kStageBytes;
    const uint32_t w = x + kXBytes;
    const int row0 = warp / kWarpsN * (kRows / kWarpsM);
#pragma unroll
    for (int pair = 0; pair < kDepth / 32; ++pair) {
      uint32_t rows[2][kRowBlocks][4];
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m)
          Stage::load_x(rows[step][m], x, row0 + 16 * m, 2 * pair + step);
#pragma unroll
      for (int n = 0; n < kColBlocks; ++n) {
        uint32_t b[2][2][2];
        Stage::load_w(b, w, first_w_row() + 16 * n, pair);
#pragma unroll
        for (int step = 0; step < 2; ++step)
#pragma unroll
          for (int m = 0; m < kRowBlocks; ++m) {
            ptx::mma_m16n8k16<T>(acc[m][n][0], rows[step][m], b[step][0][0], b[step][0][1]);
            ptx::mma_m16n8k16<T>(acc[m][n][1], rows[step][m], b[step][1][0], b[step][1][1]);
          }
      }
    }
  }

  __device__ __forceinline__ int first_w_row() const { return warp % kWarpsN * (kCols / kWarpsN); }

  // sums += part times the scales of w's rows, which are columns here; part begins anew.
  __device__ __forceinline__ void join(Sums& sums, Sums& part, int scale_column) const {
    const int num_w_rows = kGated ? 2 * a.out : a.out;
#pragma unroll
    for (int n = 0; n < kColBlocks; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // by half and neighbour
        const int row = w_row(first_w_row() + 16 * n + i / 2 * 8 + lane % 4 * 2 + i % 2);
        const int64_t at = static_cast<int64_t>(tile.x) * num_w_rows + row;
        const float scale =
            row < num_w_rows ? __ldg(a.w_scales + at * a.scale_columns + scale_column) : 0.0f;
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            float& from = part[m][n][i / 2][2 * r + i % 2];
            sums[m][n][i / 2][2 * r + i % 2] += from * scale;
            from = 0.0f;
          }
      }
  }

  __device__ __forceinline__ static float activate(float x, MoeAct act) {
    if (act == MoeAct::kSilu) return x / (1.0f + __expf(-x));
    if (act == MoeAct::kGeluErf) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    const float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
  }

  __device__ __forceinline__ void store(const Sums& acc) const {
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
    Sums acc = {};
    Sums sums = {};  // e4m3: what has been scaled
    int stage = 0;
    for (int block = 0; block < num_blocks; ++block) {
      ptx::cp_async_wait<kStages - 2>();
      __syncthreads();  // the stage has arrived, and nobody reads the one before it any more
      const int next = block + kStages - 1;
      if (next < num_blocks) copy(next, stage == 0 ? kStages - 1 : stage - 1);
      ptx::cp_async_commit();
      multiply(acc, stage);
      stage = stage + 1 == kStages ? 0 : stage + 1;
      if constexpr (kFp8) {
        constexpr int kBlocks = kMoeScaleGroup / kDepth;  // that share a scale
        const bool is_last = block + 1 == num_blocks;
        if (a.scale_columns > 1 ? is_last || block % kBlocks == kBlocks - 1 : is_last)
          join(sums, acc, a.scale_columns > 1 ? block / kBlocks : 0);
      }
    }
    if constexpr (kFp8) {
      store(sums);
    } else {
      store(acc);
    }
  }
};

template <typename T, bool kFp8, int kRows, int kCols, int kDepth, int kWarpsM, int kWarpsN,
          int kStages, bool kGated>
__global__ void __launch_bounds__(32 * kWarpsM * kWarpsN)
    gemm_kernel(const __grid_constant__ GemmArgs a) {
  using Kernel = Gemm<T, kFp8, kRows, kCols, kDepth, kWarpsM, kWarpsN, kStages, kGated>;
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

template <typename T, bool kFp8, int kRows, int kCols, int kDepth, int kWarpsM, int kWarpsN,
          int kStages, bool kGated>
cudaError_t launch_gemm(GemmArgs args, bool pdl, cudaStream_t stream) {
  using Kernel = Gemm<T, kFp8, kRows, kCols, kDepth, kWarpsM, kWarpsN, kStages, kGated>;
  args.num_col_tiles = div_up(args.out, Kernel::kOutCols);
  const int64_t blocks = static_cast<int64_t>(args.shape.max_tiles()) * args.num_col_tiles;
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(blocks)),
                          .block = dim3(Kernel::kThreads),
                          .smem_bytes = Kernel::kSmemBytes,
                          .pdl = pdl};
  return launch(gemm_kernel<T, kFp8, kRows, kCols, kDepth, kWarpsM, kWarpsN, kStages, kGated>,
                shape, stream, args);
}

// Tile shapes by rows; docs/kernels.md has what they reach.
template <typename T, bool kFp8, bool kGated>
cudaError_t dispatch_gemm(const GemmArgs& args, bool pdl, cudaStream_t stream) {
  switch (args.shape.tile_rows()) {
    case 16:
      return launch_gemm<T, kFp8, 16, 64, kFp8 ? 128 : 64, 1, 4, kFp8 ? 5 : 6, kGated>(args, pdl,
                                                                                       stream);
    case 64:
      return launch_gemm<T, kFp8, 64, 128, kFp8 ? 128 : 64, 2, 4, kFp8 ? 3 : 4, kGated>(args, pdl,
                                                                                        stream);
    default:
      return launch_gemm<T, kFp8, 128, 128, 64, 2, 4, 4, kGated>(args, pdl, stream);
  }
}

// By the dtype of x, and where args.w_scales is set with weights in e4m3.
cudaError_t gemm_bf16(const GemmArgs& args, bool gated, bool pdl, cudaStream_t stream);
cudaError_t gemm_f16(const GemmArgs& args, bool gated, bool pdl, cudaStream_t stream);
cudaError_t gemm_bf16_fp8(const GemmArgs& args, bool gated, bool pdl, cudaStream_t stream);
cudaError_t gemm_f16_fp8(const GemmArgs& args, bool gated, bool pdl, cudaStream_t stream);

}  // namespace srt::cuda::moe
