// Dense products on CUDA.
#include <cuda_runtime.h>

#include "bind/bind.h"
#include "bind/cuda_args.h"
#include "bind/dlpack.h"
#include "gemm/gated_fp8.h"
#include "gemm/skinny.h"
#include "gemm/skinny_fp8.h"
#include "gemm/wide.h"
#include "gemm/wide_fp8.h"

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

constexpr int64_t kGroup = 128;

// x, w and y of an fp8 product; y is e4m3 where `in_fp8`. e4m3 crosses as uint8.
void expect_fp8_gemm(const TensorView& x, const TensorView& w,
                     const std::optional<TensorView>& bias, const TensorView& y, bool gated,
                     bool in_fp8) {
  expect(x.ndim == 2 && w.ndim == 2 && y.ndim == 2, "x, w and y must have two dimensions");
  expect(x.dtype == DType::kU8 && w.dtype == DType::kU8, "x and w must be e4m3 as uint8");
  expect(w.dim(1) == x.dim(1), "w must be [n, k] for x [m, k]");
  expect(w.is_contiguous() && is_aligned16(w), "w must be contiguous and 16-byte aligned");
  expect_rows(x, "x");
  expect_rows(y, "y");
  expect(y.dtype == (in_fp8 ? DType::kU8 : DType::kBF16), "y must be bf16 (uint8 in fp8)");
  expect(y.dim(0) == x.dim(0) && y.dim(1) == (gated ? w.dim(0) / 2 : w.dim(0)),
         "y must be [m, n], or [m, n / 2] when gated");
  expect(x.dim(0) <= 128, "m must be at most 128");
  expect(x.dim(1) % 16 == 0, "k must be a multiple of 16");
  expect(w.dim(0) % (gated ? 16 : 8) == 0, "n must be a multiple of 8 (gated: 16)");
  expect(!(gated && bias) && !(in_fp8 && !gated),
         "a gated product takes no bias, others do not store fp8");
  if (bias) {
    expect(bias->dtype == DType::kBF16 && bias->numel() == w.dim(0) && bias->is_contiguous(),
           "bias must be bf16 [n]");
  }
}

// The fields that all fp8 products share.
template <typename Params>
Params fp8_params(const TensorView& x, const TensorView& w, const TensorView& y, bool pdl) {
  Params p{};
  p.x = x.ptr<uint8_t>();
  p.w = w.ptr<uint8_t>();
  p.y = y.data;
  p.m = static_cast<int>(x.dim(0));
  p.n = static_cast<int>(w.dim(0));
  p.k = static_cast<int>(x.dim(1));
  p.x_stride = x.step(0);
  p.y_stride = y.step(0);
  p.pdl = pdl;
  return p;
}

// A scale a row of x, or one for all.
template <typename Params>
void set_row_scales(Params& p, const TensorView& x_scales) {
  p.one_x_scale = x_scales.numel() == 1 && p.m != 1;
  p.x_scales = float_data(x_scales, "x_scales", p.one_x_scale ? 1 : p.m);
}

// The same, or scales of groups along k.
template <typename Params>
void set_x_scales(Params& p, const TensorView& x_scales) {
  if (x_scales.ndim != 2) return set_row_scales(p, x_scales);
  const GroupScales groups = group_scales(x_scales, "x_scales", p.m, (p.k + kGroup - 1) / kGroup);
  p.x_scales = groups.data;
  p.x_scale_stride = groups.stride;
}

// What a gated product's y gets: scales that are written, or one that is given.
template <typename Params>
void set_y_scales(Params& p, const TensorView& y, const std::optional<TensorView>& y_scale,
                  const std::optional<TensorView>& y_scales) {
  expect(!(y_scale && y_scales), "scales of y are either written or given");
  p.y_scale = y_scale ? float_data(*y_scale, "y_scale", 1) : nullptr;
  if (!y_scales) return;
  expect(y.dim(1) % kGroup == 0, "y must have whole groups of 128 columns");
  const GroupScales groups = group_scales(*y_scales, "y_scales", y.dim(0), y.dim(1) / kGroup);
  p.y_scales = groups.data;
  p.y_scale_stride = groups.stride;
}

// x: e4m3 [m, k]. w: e4m3 [n, k]. x_scales: [m], [1] or [m, groups]; w_scales: [n] or, x's being in
// groups, [n, groups]. bias: bf16 [n] or None. y: bf16 [m, n], or [m, n / 2] when gated: e4m3 where
// y_scale, [1], is given, or y_scales [m, n / 256], which are written.
void skinny_fp8_gemm(const TensorView& x, const TensorView& x_scales, const TensorView& w,
                     const TensorView& w_scales, const std::optional<TensorView>& bias,
                     const TensorView& y, bool gated, const std::optional<TensorView>& y_scale,
                     const std::optional<TensorView>& y_scales, bool pdl,
                     const std::array<int, 3>& shape, uint64_t stream) {
  expect_fp8_gemm(x, w, bias, y, gated, y_scale.has_value() || y_scales.has_value());
  auto p = fp8_params<cuda::SkinnyFp8Params>(x, w, y, pdl);
  p.bias = bias ? bias->data : nullptr;
  p.gated = gated;
  p.grouped = w_scales.ndim == 2;
  const int64_t groups = (x.dim(1) + kGroup - 1) / kGroup;
  expect(p.grouped || p.m <= 64, "m must be at most 64 where w has a scale a row");
  expect(!p.grouped || (x_scales.ndim == 2 && !y_scales && w_scales.dim(1) == groups),
         "w_scales must be [n, ceil(k / 128)] only if x_scales are of groups, and y's are not");
  expect(p.grouped || !gated || x_scales.ndim == 1, "a gated product takes a scale a row of x");
  set_x_scales(p, x_scales);
  set_y_scales(p, y, y_scale, y_scales);
  p.w_scales = float_data(w_scales, "w_scales", w.dim(0) * (p.grouped ? groups : 1));
  p.row_groups = shape[0];
  p.split = shape[1];
  p.ctas = shape[2];
  check_cuda(cuda::skinny_fp8_gemm(p, as_stream(stream)), "skinny_fp8_gemm");
}

// x: e4m3 [m, k]. w: e4m3 [n, k]. x_scales: [m], [1] or [m, groups]; w_scales: [n]. y: bf16 [m, n].
void wide_fp8_gemm(const TensorView& x, const TensorView& x_scales, const TensorView& w,
                   const TensorView& w_scales, const std::optional<TensorView>& bias,
                   const TensorView& y, bool pdl, const std::array<int, 4>& shape,
                   uint64_t stream) {
  expect_fp8_gemm(x, w, bias, y, false, false);
  auto p = fp8_params<cuda::WideFp8Params>(x, w, y, pdl);
  p.bias = bias ? bias->data : nullptr;
  set_x_scales(p, x_scales);
  p.w_scales = float_data(w_scales, "w_scales", w.dim(0));
  expect(is_aligned16(w_scales), "w_scales must be 16-byte aligned");
  p.tile = shape[0];
  p.split = shape[1];
  p.ctas = shape[2];
  p.stages = shape[3];
  check_cuda(cuda::wide_fp8_gemm(p, as_stream(stream)), "wide_fp8_gemm");
}

// x: e4m3 [m, k]. w: e4m3 [n, k], gate's rows and then up's. x_scales: [m] or [1]; w_scales: [n].
// y: bf16 [m, n / 2], or e4m3 where y_scale, [1], is given, or y_scales [m, n / 256], written.
void gated_fp8_gemm(const TensorView& x, const TensorView& x_scales, const TensorView& w,
                    const TensorView& w_scales, const TensorView& y,
                    const std::optional<TensorView>& y_scale,
                    const std::optional<TensorView>& y_scales, bool pdl,
                    const std::array<int, 3>& shape, uint64_t stream) {
  expect_fp8_gemm(x, w, std::nullopt, y, true, y_scale.has_value() || y_scales.has_value());
  expect(w.dim(0) % 32 == 0, "n must be a multiple of 32");
  auto p = fp8_params<cuda::GatedFp8Params>(x, w, y, pdl);
  set_row_scales(p, x_scales);
  set_y_scales(p, y, y_scale, y_scales);
  p.w_scales = float_data(w_scales, "w_scales", w.dim(0));
  expect(is_aligned16(w_scales), "w_scales must be 16-byte aligned");
  p.ctas = shape[0];
  p.stages = shape[1];
  p.x_stages = shape[2];
  check_cuda(cuda::gated_fp8_gemm(p, as_stream(stream)), "gated_fp8_gemm");
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
      "y"_a, "gated"_a = false, "y_scale"_a = py::none(), "y_scales"_a = py::none(),
      "pdl"_a = false, "shape"_a = std::array<int, 3>{0, 0, 0}, "stream"_a,
      "The same in e4m3, values being stored * scale; groups of 128 along k where scales are 2-d.");
  m.def("cuda_wide_fp8_gemm", &wide_fp8_gemm, "x"_a, "x_scales"_a, "w"_a, "w_scales"_a, "bias"_a,
        "y"_a, "pdl"_a = false, "shape"_a = std::array<int, 4>{0, 0, 0, 0}, "stream"_a,
        "The same with one scale a row of w; shape = (tile, split, CTAs, stages), 0: chosen.");
  m.def("cuda_gated_fp8_gemm", &gated_fp8_gemm, "x"_a, "x_scales"_a, "w"_a, "w_scales"_a, "y"_a,
        "y_scale"_a = py::none(), "y_scales"_a = py::none(), "pdl"_a = false,
        "shape"_a = std::array<int, 3>{0, 0, 0}, "stream"_a,
        "silu(x wg^T) * (x wu^T); shape = (CTAs, stages, stages of x), 0: chosen.");
}

}  // namespace srt::bind
