// Dense products on CUDA.
#include <cuda_runtime.h>

#include "bind/bind.h"
#include "bind/cuda_args.h"
#include "bind/dlpack.h"
#include "gemm/skinny.h"
#include "gemm/skinny_fp8.h"
#include "gemm/wide.h"

namespace srt::bind {

namespace py = pybind11;
using namespace py::literals;

namespace {

// x: [m, k]. w: [n, k]. bias: [n] or None. y: [m, n], or [m, n / 2] when gated. All bf16 or fp16.
void expect_gemm(const TensorView& x, const TensorView& w, const std::optional<TensorView>& bias,
                 const TensorView& y, bool gated) {
  expect(x.ndim == 2 && w.ndim == 2 && y.ndim == 2, "x, w and y must have two dimensions");
  expect(x.dtype == DType::kBF16 || x.dtype == DType::kF16, "x must be bf16 or fp16");
  expect(w.dtype == x.dtype && y.dtype == x.dtype, "w and y must have the dtype of x");
  expect(w.dim(1) == x.dim(1), "w must be [n, k] for x [m, k]");
  expect(w.is_contiguous(), "w must be contiguous");
  expect(x.step(1) == 1 && y.step(1) == 1, "rows of x and y must be contiguous");
  expect(y.dim(0) == x.dim(0) && y.dim(1) == (gated ? w.dim(0) / 2 : w.dim(0)),
         "y must be [m, n], or [m, n / 2] when gated");
  expect(x.step(0) % 8 == 0 && y.step(0) % 8 == 0 && x.dim(1) % 8 == 0,
         "rows of x, w and y must be 16-byte aligned");
  expect(w.dim(0) % (gated ? 16 : 8) == 0, "n must be a multiple of 8 (gated: 16)");
  expect(!(gated && bias), "a gated product takes no bias");
  if (bias) {
    expect(bias->dtype == x.dtype && bias->ndim == 1 && bias->dim(0) == w.dim(0) &&
               bias->is_contiguous(),
           "bias must be [n] with the dtype of x");
  }
}

// The fields that all dense products share.
template <typename Params>
Params gemm_params(const TensorView& x, const TensorView& w, const std::optional<TensorView>& bias,
                   const TensorView& y, bool gated, bool pdl) {
  expect_gemm(x, w, bias, y, gated);
  Params p{};
  p.x = x.data;
  p.w = w.data;
  p.bias = bias ? bias->data : nullptr;
  p.y = y.data;
  p.m = static_cast<int>(x.dim(0));
  p.n = static_cast<int>(w.dim(0));
  p.k = static_cast<int>(x.dim(1));
  p.x_stride = x.step(0);
  p.y_stride = y.step(0);
  p.dtype = x.dtype == DType::kBF16 ? cuda::Dtype::kBF16 : cuda::Dtype::kF16;
  p.gated = gated;
  p.pdl = pdl;
  return p;
}

void skinny_gemm(const TensorView& x, const TensorView& w, const std::optional<TensorView>& bias,
                 const TensorView& y, bool gated, bool pdl, const std::array<int, 3>& shape,
                 uint64_t stream) {
  auto p = gemm_params<cuda::SkinnyGemmParams>(x, w, bias, y, gated, pdl);
  expect(p.m <= 128, "m must be at most 128");
  p.row_groups = shape[0];
  p.split = shape[1];
  p.ctas = shape[2];
  check_cuda(cuda::skinny_gemm(p, as_stream(stream)), "skinny_gemm");
}

void wide_gemm(const TensorView& x, const TensorView& w, const std::optional<TensorView>& bias,
               const TensorView& y, bool gated, bool add, bool pdl, const std::array<int, 4>& shape,
               uint64_t stream) {
  auto p = gemm_params<cuda::WideGemmParams>(x, w, bias, y, gated, pdl);
  expect(!(gated && add), "a gated product is not added to y");
  p.add = add;
  p.tile = shape[0];
  p.split = shape[1];
  p.pair = shape[2];
  p.rows = shape[3];
  check_cuda(cuda::wide_gemm(p, as_stream(stream)), "wide_gemm");
}

// The scales of an fp8 matrix [rows, k]: one a row, one for every 128 of k, or (x only) one in all.
const float* fp8_scales(const TensorView& t, const char* name, int64_t rows, int64_t k,
                        bool grouped) {
  if (!grouped) return float_data(t, name, t.numel() == 1 ? 1 : rows);
  expect_arg(t.ndim == 2 && t.dim(0) == rows, name, "must be [rows, ceil(k / 128)]");
  return float_data(t, name, rows * ((k + 127) / 128));
}

// x: e4m3 [m, k]. w: e4m3 [n, k]. x_scales: [m], [1] or [m, groups]; w_scales: [n] or [n, groups].
// bias: bf16 [n] or None. y: bf16 [m, n], or [m, n / 2] when gated (e4m3 where y_scale, [1], is
// given). e4m3 crosses as uint8.
void skinny_fp8_gemm(const TensorView& x, const TensorView& x_scales, const TensorView& w,
                     const TensorView& w_scales, const std::optional<TensorView>& bias,
                     const TensorView& y, bool gated, const std::optional<TensorView>& y_scale,
                     bool pdl, const std::array<int, 3>& shape, uint64_t stream) {
  expect(x.ndim == 2 && w.ndim == 2 && y.ndim == 2, "x, w and y must have two dimensions");
  expect(x.dtype == DType::kU8 && w.dtype == DType::kU8, "x and w must be e4m3 as uint8");
  expect(w.dim(1) == x.dim(1), "w must be [n, k] for x [m, k]");
  expect(w.is_contiguous() && is_aligned16(w), "w must be contiguous and 16-byte aligned");
  expect_rows(x, "x");
  expect_rows(y, "y");
  expect(y.dtype == (y_scale ? DType::kU8 : DType::kBF16), "y must be bf16 (uint8 with y_scale)");
  expect(y.dim(0) == x.dim(0) && y.dim(1) == (gated ? w.dim(0) / 2 : w.dim(0)),
         "y must be [m, n], or [m, n / 2] when gated");
  expect(x.dim(0) <= 128, "m must be at most 128");
  expect(x.dim(1) % 16 == 0, "k must be a multiple of 16");
  expect(w.dim(0) % (gated ? 16 : 8) == 0, "n must be a multiple of 8 (gated: 16)");
  expect(!(gated && bias) && !(y_scale && !gated),
         "a gated product takes no bias, others no y_scale");
  cuda::SkinnyFp8Params p{};
  p.grouped = w_scales.ndim == 2;
  p.one_x_scale = !p.grouped && x_scales.numel() == 1 && x.dim(0) != 1;
  p.x = x.ptr<uint8_t>();
  p.w = w.ptr<uint8_t>();
  p.x_scales = fp8_scales(x_scales, "x_scales", x.dim(0), x.dim(1), p.grouped);
  p.w_scales = fp8_scales(w_scales, "w_scales", w.dim(0), w.dim(1), p.grouped);
  expect(p.grouped || w_scales.numel() == w.dim(0), "w_scales must hold one scale a row");
  if (bias) {
    expect(bias->dtype == DType::kBF16 && bias->numel() == w.dim(0) && bias->is_contiguous(),
           "bias must be bf16 [n]");
    p.bias = bias->data;
  }
  p.y = y.data;
  p.y_scale = y_scale ? float_data(*y_scale, "y_scale", 1) : nullptr;
  p.m = static_cast<int>(x.dim(0));
  p.n = static_cast<int>(w.dim(0));
  p.k = static_cast<int>(x.dim(1));
  p.x_stride = x.step(0);
  p.y_stride = y.step(0);
  p.gated = gated;
  p.pdl = pdl;
  p.row_groups = shape[0];
  p.split = shape[1];
  p.ctas = shape[2];
  check_cuda(cuda::skinny_fp8_gemm(p, as_stream(stream)), "skinny_fp8_gemm");
}

}  // namespace

void bind_cuda_gemm(py::module_& m) {
  m.def("cuda_skinny_gemm", &skinny_gemm, "x"_a, "w"_a, "bias"_a, "y"_a, "gated"_a = false,
        "pdl"_a = false, "shape"_a = std::array<int, 3>{0, 0, 0}, "stream"_a,
        "y = x w^T + bias for at most 128 rows; shape = (row groups, split, CTAs), 0: chosen.");
  m.def("cuda_wide_gemm", &wide_gemm, "x"_a, "w"_a, "bias"_a, "y"_a, "gated"_a = false,
        "add"_a = false, "pdl"_a = false, "shape"_a = std::array<int, 4>{0, 0, 0, 0}, "stream"_a,
        "y = x w^T + bias, or y += with `add`; shape = (tile, split, pair, rows of x), 0: chosen.");
  m.def(
      "cuda_skinny_fp8_gemm", &skinny_fp8_gemm, "x"_a, "x_scales"_a, "w"_a, "w_scales"_a, "bias"_a,
      "y"_a, "gated"_a = false, "y_scale"_a = py::none(), "pdl"_a = false,
      "shape"_a = std::array<int, 3>{0, 0, 0}, "stream"_a,
      "The same in e4m3, values being stored * scale; groups of 128 along k where scales are 2-d.");
}

}  // namespace srt::bind
