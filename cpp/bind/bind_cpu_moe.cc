// Experts, and the products of groups that latent attention shares with them, on the CPU.
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bind/bind.h"
#include "bind/cpu_args.h"
#include "bind/dlpack.h"
#include "cpu/grouped.h"
#include "cpu/moe.h"

namespace srt::bind {
namespace {

namespace py = pybind11;
using namespace pybind11::literals;

// x: [T, groups, in]. w: [groups, out, in], or [groups, in, out] with transposed. y: [T, groups,
// out]. Rows contiguous.
void head_linear(const TensorView& x, const TensorView& w, const TensorView& y, bool transposed) {
  expect_rows(x, 3, "x");
  expect_rows(w, 3, "w");
  expect_rows(y, 3, "y");
  const int64_t in = x.dim(2);
  const int64_t out = y.dim(2);
  expect(w.dtype == x.dtype && y.dtype == x.dtype, "w and y must have the dtype of x");
  expect(w.dim(0) == x.dim(1) && y.dim(1) == x.dim(1) && y.dim(0) == x.dim(0),
         "x, w and y must agree in tokens and groups");
  expect(w.dim(1) == (transposed ? in : out) && w.dim(2) == (transposed ? out : in),
         "w must be [groups, out, in], or [groups, in, out] with transposed");
  const cpu::GroupedLinearParams p{.dtype = x.dtype,
                                   .x = x.data,
                                   .w = w.data,
                                   .y = y.data,
                                   .indptr = nullptr,
                                   .source = nullptr,
                                   .groups = x.dim(1),
                                   .rows = x.dim(0),
                                   .in = in,
                                   .out = out,
                                   .x_stride = x.step(0),
                                   .x_group_stride = x.step(1),
                                   .y_stride = y.step(0),
                                   .y_group_stride = y.step(1),
                                   .w_stride = w.step(1),
                                   .w_group_stride = w.step(0),
                                   .w_transposed = transposed};
  run(p.rows * p.groups * in * out, [p] { cpu::grouped_linear(p); });
}

// logits: [T, E]. weights: f32 [T, k]. experts: int32 [T, k].
void moe_route(const TensorView& logits, const TensorView& weights, const TensorView& experts,
               float softcap, float norm_order, float scale, int64_t groups, int64_t top_groups) {
  expect_rows(logits, 2, "logits");
  expect(experts.ndim == 2 && experts.dim(0) == logits.dim(0) && experts.dim(1) > 0 &&
             experts.dim(1) <= logits.dim(1),
         "experts must be int32 [T, k], k at most the number of experts");
  expect_like(weights, DType::kF32, experts.numel(), "weights");
  expect(groups > 0 && logits.dim(1) % groups == 0 && top_groups > 0 && top_groups <= groups,
         "groups must divide the number of experts, top_groups lie between 1 and groups");
  expect(experts.dim(1) <= top_groups * (logits.dim(1) / groups),
         "top_groups groups must have as many experts as a token takes");
  const cpu::RouteParams p{.dtype = logits.dtype,
                           .logits = logits.data,
                           .tokens = logits.dim(0),
                           .experts = logits.dim(1),
                           .top_k = experts.dim(1),
                           .logits_stride = logits.step(0),
                           .softcap = softcap,
                           .norm_order = norm_order,
                           .scale = scale,
                           .groups = groups,
                           .top_groups = top_groups,
                           .weights = weights.ptr<float>(),
                           .chosen = int32s_out(experts, 0, "experts")};
  run(logits.numel() * 8, [p] { cpu::route(p); });
}

// x, out: [T, H]. gate_up: [E, 2 * I, H]. down: [E, H, I]. weights: f32 [T, k]. experts: int32 [T,
// k]. shared: [T, H]. shared_gate: [T, 1]. Work space, A = T * k: places int32 [E + 1 + 2 * A],
// buffer [A * (3 * I + H)] of x's dtype.
void moe_experts(const TensorView& x, const TensorView& gate_up, const TensorView& down,
                 const TensorView& weights, const TensorView& experts, const std::string& act,
                 const std::optional<TensorView>& shared,
                 const std::optional<TensorView>& shared_gate, const TensorView& places,
                 const TensorView& buffer, const TensorView& out) {
  expect_rows(x, 2, "x");
  expect(gate_up.ndim == 3 && down.ndim == 3 && gate_up.dim(1) == 2 * down.dim(2) &&
             gate_up.dim(2) == x.dim(1) && down.dim(1) == x.dim(1) && gate_up.dim(0) == down.dim(0),
         "gate_up must be [E, 2 * I, H] and down [E, H, I] for x [T, H]");
  expect_like(gate_up, x.dtype, gate_up.numel(), "gate_up");
  expect_like(down, x.dtype, down.numel(), "down");
  expect(experts.ndim == 2 && experts.dim(0) == x.dim(0), "experts must be int32 [T, k]");
  const int64_t count = experts.numel();
  const int64_t num_experts = gate_up.dim(0);
  const int64_t size = down.dim(2);
  expect_like(weights, DType::kF32, count, "weights");
  const int32_t* chosen = int32s(experts, count, "experts");
  expect(!shared_gate || shared, "shared_gate needs shared");
  if (shared) expect_like(*shared, x.dtype, x.numel(), "shared");
  if (shared_gate) expect_like(*shared_gate, x.dtype, x.dim(0), "shared_gate");
  expect_like(out, x.dtype, x.numel(), "out");
  expect_like(buffer, x.dtype, count * (3 * size + x.dim(1)), "buffer");
  int32_t* indptr = int32s_out(places, num_experts + 1 + 2 * count, "places");
  char* next = buffer.ptr<char>();
  const auto take = [&](int64_t columns) {
    char* here = next;
    next += count * columns * static_cast<int64_t>(dtype_bytes(x.dtype));
    return here;
  };
  const cpu::ExpertsParams p{.dtype = x.dtype,
                             .x = x.data,
                             .gate_up = gate_up.data,
                             .down = down.data,
                             .weights = weights.ptr<float>(),
                             .chosen = chosen,
                             .tokens = x.dim(0),
                             .top_k = experts.dim(1),
                             .experts = num_experts,
                             .hidden = x.dim(1),
                             .size = size,
                             .x_stride = x.step(0),
                             .gate = as_gate(act),
                             .shared = shared ? shared->data : nullptr,
                             .shared_gate = shared_gate ? shared_gate->data : nullptr,
                             .indptr = indptr,
                             .place = indptr + num_experts + 1,
                             .wide = take(2 * size),
                             .narrow = take(size),
                             .rows = take(x.dim(1)),
                             .out = out.data};
  run(count * size * x.dim(1), [p] {
    for (int64_t i = 0; i < p.tokens * p.top_k; ++i) {
      expect(p.chosen[i] >= 0 && p.chosen[i] < p.experts, "experts must be ids in [0, E)");
    }
    cpu::experts_mlp(p);
  });
}

}  // namespace

void bind_cpu_moe(py::module_& m) {
  m.def("cpu_head_linear", &head_linear, "x"_a, "w"_a, "y"_a, "transposed"_a);
  m.def("cpu_moe_route", &moe_route, "logits"_a, "weights"_a, "experts"_a, "softcap"_a,
        "norm_order"_a, "scale"_a, "groups"_a, "top_groups"_a);
  m.def("cpu_moe_experts", &moe_experts, "x"_a, "gate_up"_a, "down"_a, "weights"_a, "experts"_a,
        "act"_a, "shared"_a, "shared_gate"_a, "places"_a, "buffer"_a, "out"_a);
}

}  // namespace srt::bind
