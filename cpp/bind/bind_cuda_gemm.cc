// Dense products on CUDA.
#include <cuda_runtime.h>

#include "bind/bind.h"
#include "bind/cuda_args.h"
#include "bind/dlpack.h"
#include "gemm/skinny.h"

namespace srt::bind {

namespace py = pybind11;
using namespace py::literals;

namespace {

// x: [m, k]. w: [n, k]. bias: [n] or None. y: [m, n], or [m, n / 2] when gated. All bf16 or fp16.
void skinny_gemm(const TensorView& x, const TensorView& w, const std::optional<TensorView>& bias,
                 const TensorView& y, bool gated, bool pdl, const std::array<int, 3>& shape,
                 uint64_t stream) {
  expect(x.ndim == 2 && w.ndim == 2 && y.ndim == 2, "x, w and y must have two dimensions");
  expect(x.dtype == DType::kBF16 || x.dtype == DType::kF16, "x must be bf16 or fp16");
  expect(w.dtype == x.dtype && y.dtype == x.dtype, "w and y must have the dtype of x");
  expect(w.dim(1) == x.dim(1), "w must be [n, k] for x [m, k]");
  expect(w.is_contiguous(), "w must be contiguous");
  expect(x.step(1) == 1 && y.step(1) == 1, "rows of x and y must be contiguous");
  expect(y.dim(0) == x.dim(0) && y.dim(1) == (gated ? w.dim(0) / 2 : w.dim(0)),
         "y must be [m, n], or [m, n / 2] when gated");
  expect(x.dim(0) <= 128, "m must be at most 128");
  expect(x.step(0) % 8 == 0 && y.step(0) % 8 == 0 && x.dim(1) % 8 == 0,
         "rows of x, w and y must be 16-byte aligned");
  expect(w.dim(0) % (gated ? 16 : 8) == 0, "n must be a multiple of 8 (gated: 16)");
  expect(!(gated && bias), "a gated product takes no bias");
  if (bias) {
    expect(bias->dtype == x.dtype && bias->ndim == 1 && bias->dim(0) == w.dim(0) &&
               bias->is_contiguous(),
           "bias must be [n] with the dtype of x");
  }
  cuda::SkinnyGemmParams p{};
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
  p.row_groups = shape[0];
  p.split = shape[1];
  p.ctas = shape[2];
  check_cuda(cuda::skinny_gemm(p, as_stream(stream)), "skinny_gemm");
}

}  // namespace

void bind_cuda_gemm(py::module_& m) {
  m.def("cuda_skinny_gemm", &skinny_gemm, "x"_a, "w"_a, "bias"_a, "y"_a, "gated"_a = false,
        "pdl"_a = false, "shape"_a = std::array<int, 3>{0, 0, 0}, "stream"_a,
        "y = x w^T + bias for at most 128 rows; shape = (row groups, split, CTAs), 0: chosen.");
}

}  // namespace srt::bind
