// The arguments of norms, and of rows that go out in fp8.
#pragma once

#include "bind/cuda_args.h"
#include "norm/norm.h"

namespace srt::bind {

using OptionalView = std::optional<TensorView>;

// [..., H] of up to three dimensions as rows.
inline cuda::RowLayout as_rows(const TensorView& t) {
  if (t.ndim == 3) return {t.step(0), t.step(1), static_cast<int>(t.dim(1))};
  return {t.ndim == 2 ? t.step(0) : 0, 0, 1};
}

// What an fp8 output's scales are: `scales` is written, float32 [rows] (or [rows, width / 128] as
// `group_scales` wants it), or `given`, float32 [1], is read. Neither: the output has the model's
// dtype.
inline cuda::Fp8Rows as_fp8_rows(const OptionalView& scales, const OptionalView& given, float limit,
                                 int64_t rows, int64_t width) {
  expect(!(scales && given), "scales are either written or given");
  expect(limit >= 0.0f, "limit must not be negative");
  cuda::Fp8Rows fp8;
  fp8.limit = limit;
  if (given) fp8.given = float_data(*given, "given", 1);
  if (!scales) return fp8;
  fp8.grouped = scales->ndim == 2;
  if (!fp8.grouped) {
    fp8.scales = float_data(*scales, "scales", rows);
    return fp8;
  }
  expect_arg(width % cuda::kFp8Group == 0, "scales",
             "of groups need a width that is a multiple of 128");
  const GroupScales groups = group_scales(*scales, "scales", rows, width / cuda::kFp8Group);
  fp8.scales = groups.data;
  fp8.group_stride = groups.stride;
  return fp8;
}

// x, out: [..., H] of one to three dimensions; out may be x, or e4m3 as uint8 where `scales` or
// `given` says so. residual: [rows, H] contiguous. weight, bias: [H].
inline cuda::NormParams as_norm_params(const TensorView& x, const TensorView& weight,
                                       const OptionalView& bias, const OptionalView& residual,
                                       const TensorView& out, const OptionalView& scales, float eps,
                                       float weight_offset, bool centered, bool pdl,
                                       const OptionalView& given, float limit) {
  expect(x.ndim >= 1 && x.ndim <= 3 && out.ndim == x.ndim, "x and out must have 1 to 3 dimensions");
  const int64_t hidden = x.dim(x.ndim - 1);
  const int64_t rows = hidden == 0 ? 0 : x.numel() / hidden;
  expect(hidden % 8 == 0 && hidden <= cuda::kMaxNormHidden,
         "the last dimension of x must be a multiple of 8, at most 16384");
  expect_rows(x, "x");
  cuda::NormParams p{};
  p.fp8 = as_fp8_rows(scales, given, limit, rows, hidden);
  const bool in_fp8 = p.fp8.is_set();
  expect_arg(out.dtype == (in_fp8 ? DType::kU8 : x.dtype), "out",
             "must have the dtype of x (uint8 in fp8)");
  expect(out.shape == x.shape, "out must have the shape of x");
  if (!in_fp8) expect_rows(out, "out");
  if (in_fp8) expect(out.is_contiguous(), "an fp8 out must be contiguous");
  p.x = x.data;
  p.residual = residual ? vector_data(*residual, "residual", x, x.numel()) : nullptr;
  p.weight = vector_data(weight, "weight", x, hidden);
  p.bias = bias ? vector_data(*bias, "bias", x, hidden) : nullptr;
  p.out = out.data;
  p.x_rows = as_rows(x);
  p.out_rows = as_rows(out);
  p.num_rows = static_cast<int>(rows);
  p.hidden = static_cast<int>(hidden);
  p.eps = eps;
  p.weight_offset = weight_offset;
  p.centered = centered;
  p.dtype = as_dtype(x, "x");
  p.pdl = pdl;
  return p;
}

}  // namespace srt::bind
