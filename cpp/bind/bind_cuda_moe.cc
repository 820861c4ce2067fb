// Mixtures of experts on CUDA.
#include "bind/bind.h"
#include "bind/cuda_args.h"
#include "bind/dlpack.h"
#include "moe/moe.h"

namespace srt::bind {

namespace py = pybind11;
using namespace py::literals;

namespace {

// logits: [T, E]. weights: f32 [T, k]. experts: int32 [T, k].
void moe_route(const TensorView& logits, const TensorView& weights, const TensorView& experts,
               float softcap, float norm_order, float scale, int groups, int top_groups, bool pdl,
               uint64_t stream) {
  expect(logits.ndim == 2 && logits.step(1) == 1 && logits.device == Device::kCuda,
         "logits must be [T, E] on the device");
  expect(logits.dim(1) <= cuda::kMaxExperts, "logits must have at most 512 experts");
  expect(experts.ndim == 2 && experts.dim(0) == logits.dim(0) && experts.dim(1) > 0 &&
             experts.dim(1) <= std::min<int64_t>(logits.dim(1), cuda::kMaxTopK),
         "experts must be int32 [T, k], k at most 32 and the number of experts");
  expect(groups > 0 && groups <= cuda::kMaxGroups && logits.dim(1) % groups == 0 &&
             top_groups > 0 && top_groups <= groups,
         "groups must be at most 32 and divide the experts, top_groups lie between 1 and groups");
  expect(experts.dim(1) <= top_groups * (logits.dim(1) / groups),
         "top_groups groups must have as many experts as a token takes");
  const cuda::RouteParams p{.logits = logits.data,
                            .weights = float_data(weights, "weights", experts.numel()),
                            .experts = int_data(experts, "experts", experts.numel()),
                            .logits_stride = logits.step(0),
                            .num_tokens = static_cast<int>(logits.dim(0)),
                            .num_experts = static_cast<int>(logits.dim(1)),
                            .top_k = static_cast<int>(experts.dim(1)),
                            .num_groups = groups,
                            .top_groups = top_groups,
                            .softcap = softcap,
                            .norm_order = norm_order,
                            .scale = scale,
                            .dtype = as_dtype(logits, "logits"),
                            .pdl = pdl};
  check_cuda(cuda::moe_route(p, as_stream(stream)), "moe_route");
}

cuda::MoeAct as_act(const std::string& act) {
  if (act == "silu") return cuda::MoeAct::kSilu;
  if (act == "gelu") return cuda::MoeAct::kGeluErf;
  if (act == "gelu_tanh") return cuda::MoeAct::kGeluTanh;
  throw InvalidArgument("act must be silu, gelu or gelu_tanh, not " + act);
}

int64_t plan_words(int num_tokens, int top_k, int num_experts) {
  return cuda::moe_plan_words({num_tokens, top_k, num_experts, 0, 0});
}

const void* e4m3_data(const TensorView& t, const char* name) {
  expect_arg(t.device == Device::kCuda && t.dtype == DType::kU8 && t.is_contiguous(), name,
             "must be e4m3 as uint8, contiguous on the device");
  expect_arg(is_aligned16(t), name, "must be 16-byte aligned");
  return t.data;
}

// Weights of experts in the dtype of x, or e4m3 as uint8 and their scales.
void set_weights(cuda::ExpertsParams& p, const TensorView& x, const TensorView& gate_up,
                 const TensorView& down, const std::optional<TensorView>& gate_up_scales,
                 const std::optional<TensorView>& down_scales) {
  const auto [tokens, top_k, num_experts, hidden, size] = p.shape;
  expect(gate_up_scales.has_value() == down_scales.has_value(),
         "gate_up and down must both have scales or none");
  if (!gate_up_scales) {
    p.gate_up = vector_data(gate_up, "gate_up", x, gate_up.numel());
    p.down = vector_data(down, "down", x, down.numel());
    return;
  }
  expect(hidden % 16 == 0 && size % 16 == 0, "H and I must be multiples of 16 in fp8");
  p.gate_up = e4m3_data(gate_up, "gate_up");
  p.down = e4m3_data(down, "down");
  p.in_blocks = gate_up_scales->ndim == 3;
  expect(down_scales->ndim == gate_up_scales->ndim, "scales must both be of blocks or of rows");
  const auto columns = [&](int in) -> int64_t {
    return p.in_blocks ? cuda::div_up(in, cuda::kMoeScaleGroup) : 1;
  };
  const int64_t rows = num_experts;
  p.gate_up_scales =
      float_data(*gate_up_scales, "gate_up_scales", rows * 2 * size * columns(hidden));
  p.down_scales = float_data(*down_scales, "down_scales", rows * hidden * columns(size));
}

// x, out: [T, H]. gate_up: [E, 2 * I, H]. down: [E, H, I]. weights: f32 [T, k]. experts: int32 [T,
// k]. shared: [T, H]. shared_gate: [T, 1]. plan: int32 [moe_plan_words]. buffer: [T * k * (I + H)].
// gate_up_scales: f32 [E, 2 * I], in blocks [E, 2 * I, ceil(H / 128)]; down_scales alike.
void moe_experts(const TensorView& x, const TensorView& gate_up, const TensorView& down,
                 const std::optional<TensorView>& gate_up_scales,
                 const std::optional<TensorView>& down_scales, const TensorView& weights,
                 const TensorView& experts, const std::string& act,
                 const std::optional<TensorView>& shared,
                 const std::optional<TensorView>& shared_gate, const TensorView& plan,
                 const TensorView& buffer, const TensorView& out, bool pdl, uint64_t stream) {
  expect(x.dtype == DType::kBF16 || x.dtype == DType::kF16, "x must be bf16 or fp16");
  expect(x.ndim == 2, "x must be [T, H]");
  expect_rows(x, "x");
  expect(gate_up.ndim == 3 && down.ndim == 3 && gate_up.dim(1) == 2 * down.dim(2) &&
             gate_up.dim(2) == x.dim(1) && down.dim(1) == x.dim(1) && gate_up.dim(0) == down.dim(0),
         "gate_up must be [E, 2 * I, H] and down [E, H, I] for x [T, H]");
  expect(x.dim(1) % 8 == 0 && down.dim(2) % 8 == 0, "H and I must be multiples of 8");
  expect(gate_up.dim(0) <= cuda::kMaxExperts, "gate_up must have at most 512 experts");
  expect(experts.ndim == 2 && experts.dim(0) == x.dim(0), "experts must be int32 [T, k]");
  expect(!shared_gate || shared, "shared_gate needs shared");
  cuda::ExpertsParams p{};
  p.shape = {.num_tokens = static_cast<int>(x.dim(0)),
             .top_k = static_cast<int>(experts.dim(1)),
             .num_experts = static_cast<int>(gate_up.dim(0)),
             .hidden = static_cast<int>(x.dim(1)),
             .size = static_cast<int>(down.dim(2))};
  const int64_t choices = experts.numel();
  p.x = x.data;
  p.x_stride = x.step(0);
  set_weights(p, x, gate_up, down, gate_up_scales, down_scales);
  p.weights = float_data(weights, "weights", choices);
  p.experts = int_data(experts, "experts", choices);
  p.shared = shared ? vector_data(*shared, "shared", x, x.numel()) : nullptr;
  if (shared_gate) {
    expect(shared_gate->dtype == x.dtype && shared_gate->numel() == x.dim(0) &&
               shared_gate->is_contiguous(),
           "shared_gate must be [T, 1] of x's dtype");
    p.shared_gate = shared_gate->data;
  }
  p.plan = int_data(plan, "plan", cuda::moe_plan_words(p.shape));
  expect(is_aligned16(plan), "plan must be 16-byte aligned");
  p.narrow = vector_data(buffer, "buffer", x, choices * (p.shape.size + p.shape.hidden));
  p.rows = buffer.ptr<uint16_t>() + choices * p.shape.size;
  p.out = vector_data(out, "out", x, x.numel());
  p.act = as_act(act);
  p.dtype = as_dtype(x, "x");
  p.pdl = pdl;
  check_cuda(cuda::moe_experts(p, as_stream(stream)), "moe_experts");
}

// x: e4m3 as uint8 [.., K], out: bf16 or fp16 of the same shape. scales: f32 [..], in blocks [..,
// ceil(K / 128)].
void moe_widen(const TensorView& x, const TensorView& scales, const TensorView& out, bool pdl,
               uint64_t stream) {
  expect(x.ndim >= 2 && x.dim(x.ndim - 1) % 16 == 0, "K must be a multiple of 16");
  expect(out.dtype == DType::kBF16 || out.dtype == DType::kF16, "out must be bf16 or fp16");
  const auto columns = static_cast<int>(x.dim(x.ndim - 1));
  const bool in_blocks = scales.ndim == x.ndim;
  const int groups = in_blocks ? cuda::div_up(columns, cuda::kMoeScaleGroup) : 1;
  const int64_t rows = columns == 0 ? 0 : x.numel() / columns;
  const cuda::WidenParams p{.x = static_cast<const uint8_t*>(e4m3_data(x, "x")),
                            .scales = float_data(scales, "scales", rows * groups),
                            .out = vector_data(out, "out", out, x.numel()),
                            .rows = rows,
                            .columns = columns,
                            .scale_columns = groups,
                            .group = in_blocks ? cuda::kMoeScaleGroup : columns,
                            .dtype = as_dtype(out, "out"),
                            .pdl = pdl};
  check_cuda(cuda::moe_widen(p, as_stream(stream)), "moe_widen");
}

}  // namespace

void bind_cuda_moe(py::module_& m) {
  m.def("cuda_moe_route", &moe_route, "logits"_a, "weights"_a, "experts"_a, "softcap"_a,
        "norm_order"_a, "scale"_a, "groups"_a, "top_groups"_a, "pdl"_a = false, "stream"_a);
  m.def("cuda_moe_plan_words", &plan_words, "num_tokens"_a, "top_k"_a, "num_experts"_a);
  m.def("cuda_moe_experts", &moe_experts, "x"_a, "gate_up"_a, "down"_a, "gate_up_scales"_a,
        "down_scales"_a, "weights"_a, "experts"_a, "act"_a, "shared"_a, "shared_gate"_a, "plan"_a,
        "buffer"_a, "out"_a, "pdl"_a = false, "stream"_a);
  m.def("cuda_moe_widen", &moe_widen, "x"_a, "scales"_a, "out"_a, "pdl"_a = false, "stream"_a);
}

}  // namespace srt::bind
