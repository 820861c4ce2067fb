// The decode step of few rows as one kernel, on CUDA.
#include <cuda_runtime.h>

#include <array>
#include <bit>
#include <string>

#include "bind/bind.h"
#include "bind/cuda_args.h"
#include "bind/dlpack.h"
#include "decode_step/decode_step.h"

namespace srt::bind {

namespace py = pybind11;
using namespace py::literals;

namespace {

using Sizes = std::array<int, 6>;  // layers, hidden, intermediate, query heads, KV heads, head_dim

cuda::DecodeStepShape as_shape(const Sizes& s) { return {s[0], s[1], s[2], s[3], s[4], s[5]}; }

// x: bf16 [rows, hidden] contiguous, replaced. layers: int64 [layers, 10], device addresses as in
// DecodeStepLayer, whose owner keeps them alive, the last word its two floats. positions, slots,
// rows, seq_lens: int32 [rows]. page_table: int32 [any, pages]. cos_sin: float32 [max_positions,
// head_dim]. workspace: uint8.
void decode_step(const TensorView& x, const TensorView& layers, const TensorView& positions,
                 const TensorView& slots, const TensorView& rows, const TensorView& seq_lens,
                 const TensorView& page_table, const TensorView& cos_sin,
                 const TensorView& workspace, const Sizes& sizes, int page_size, float eps,
                 float scale, const std::string& kv_format, bool pdl, uint64_t stream) {
  cuda::DecodeStepParams p{};
  p.shape = as_shape(sizes);
  expect(cuda::decode_step_fits(p.shape), "no decode step kernel for these sizes");
  expect(x.ndim == 2 && x.dtype == DType::kBF16 && x.is_contiguous() && is_aligned16(x) &&
             x.device == Device::kCuda && x.dim(1) == p.shape.hidden,
         "x must be bf16 [rows, hidden], contiguous on the device");
  expect(x.dim(0) <= cuda::kMaxDecodeStepRows, "x must have at most 8 rows");
  expect(layers.dtype == DType::kI64 && layers.is_contiguous() && layers.device == Device::kCuda &&
             layers.numel() == int64_t{p.shape.num_layers} * cuda::kDecodeStepLayerWords,
         "layers must be int64 [layers, 10] on the device");
  expect(page_size > 0 && std::has_single_bit(static_cast<unsigned>(page_size)),
         "page_size must be a power of two");
  expect(page_table.ndim == 2 && page_table.step(1) == 1, "page_table must be [rows, pages]");
  expect(cos_sin.ndim == 2 && cos_sin.dim(1) == p.shape.head_dim && is_aligned16(cos_sin),
         "cos_sin must be [max_positions, head_dim]");
  expect(workspace.device == Device::kCuda && workspace.is_contiguous() &&
             workspace.dtype == DType::kU8 && is_aligned16(workspace) &&
             workspace.numel() >= static_cast<int64_t>(cuda::decode_step_bytes(p.shape)),
         "workspace must be uint8 on the device, of decode_step_bytes");
  const int64_t n = x.dim(0);
  p.layers = layers.ptr<cuda::DecodeStepLayer>();
  p.x = x.data;
  p.positions = int_data(positions, "positions", n);
  p.slots = int_data(slots, "slots", n);
  p.rows = int_data(rows, "rows", n);
  p.seq_lens = int_data(seq_lens, "seq_lens", n);
  p.page_table = int_data(page_table, "page_table", 0);
  p.page_table_stride = page_table.step(0);
  p.cos_sin = float_data(cos_sin, "cos_sin", cos_sin.numel());
  p.workspace = workspace.data;
  p.num_rows = static_cast<int>(n);
  p.log2_page_size = std::countr_zero(static_cast<unsigned>(page_size));
  p.eps = eps;
  p.scale = scale;
  p.kv_format = as_kv_format(kv_format);
  p.pdl = pdl;
  check_cuda(cuda::run_decode_step(p, as_stream(stream)), "decode_step");
}

}  // namespace

void bind_cuda_decode_step(py::module_& m) {
  m.attr("MAX_DECODE_STEP_ROWS") = cuda::kMaxDecodeStepRows;
  m.attr("DECODE_STEP_HEADER_BYTES") = cuda::kDecodeStepHeaderBytes;
  m.def(
      "decode_step_fits", [](const Sizes& s) { return cuda::decode_step_fits(as_shape(s)); },
      "sizes"_a);
  m.def(
      "decode_step_bytes", [](const Sizes& s) { return cuda::decode_step_bytes(as_shape(s)); },
      "sizes"_a);
  m.def("cuda_decode_step", &decode_step, "x"_a, "layers"_a, "positions"_a, "slots"_a, "rows"_a,
        "seq_lens"_a, "page_table"_a, "cos_sin"_a, "workspace"_a, "sizes"_a, "page_size"_a, "eps"_a,
        "scale"_a, "kv_format"_a, "pdl"_a, "stream"_a);
}

}  // namespace srt::bind
