// The CPU kernels as functions `cpu_*`. fp8 caches cross as uint8; `kv_format` names what they
// hold.
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bind/bind.h"
#include "bind/cpu_args.h"
#include "bind/dlpack.h"
#include "cpu/activation.h"
#include "cpu/attention.h"
#include "cpu/embedding.h"
#include "cpu/isa.h"
#include "cpu/kv_store.h"
#include "cpu/linear.h"
#include "cpu/norm.h"
#include "cpu/sample.h"
#include "cpu/step.h"
#include "cpu/threads.h"

namespace srt::bind {
namespace {

using namespace pybind11::literals;

// Rows of the last dimension. 2-d: one stride. 3-d: heads inside tokens.
cpu::RowLayout row_layout(const TensorView& t, const char* name) {
  expect_rows(t, t.ndim == 3 ? 3 : 2, name);
  if (t.ndim == 3) return {std::max<int64_t>(t.dim(1), 1), t.step(0), t.step(1)};
  return {1, t.step(0), 0};
}

// x, out: [rows, size] or [tokens, heads, size], out may be x. residual: [rows, size]. weight:
// [size].
void rms_norm(const TensorView& x, const TensorView& weight, float eps, float weight_offset,
              const std::optional<TensorView>& residual, const TensorView& out) {
  const cpu::RowLayout x_rows = row_layout(x, "x");
  const cpu::RowLayout out_rows = row_layout(out, "out");
  const int64_t size = x.dim(x.ndim - 1);
  expect(size > 0, "x must have a last dimension of at least 1");
  expect(out.dtype == x.dtype && out.ndim == x.ndim && out.shape == x.shape,
         "out must have x's shape and dtype");
  expect_like(weight, x.dtype, size, "weight");
  if (residual) expect_like(*residual, x.dtype, x.numel(), "residual");
  const cpu::RmsNormParams p{.dtype = x.dtype,
                             .x = x.data,
                             .x_rows = x_rows,
                             .residual = residual ? residual->data : nullptr,
                             .weight = weight.data,
                             .out = out.data,
                             .out_rows = out_rows,
                             .rows = x.numel() / size,
                             .size = size,
                             .eps = eps,
                             .weight_offset = weight_offset};
  run(x.numel(), [p] { cpu::rms_norm(p); });
}

// x, out: [rows, size], out contiguous. weight, bias: [size].
void layer_norm(const TensorView& x, const TensorView& weight,
                const std::optional<TensorView>& bias, float eps, const TensorView& out) {
  expect_rows(x, 2, "x");
  expect_like(weight, x.dtype, x.dim(1), "weight");
  if (bias) expect_like(*bias, x.dtype, x.dim(1), "bias");
  expect_like(out, x.dtype, x.numel(), "out");
  const cpu::LayerNormParams p{.dtype = x.dtype,
                               .x = x.data,
                               .weight = weight.data,
                               .bias = bias ? bias->data : nullptr,
                               .out = out.data,
                               .rows = x.dim(0),
                               .size = x.dim(1),
                               .x_stride = x.step(0),
                               .eps = eps};
  run(x.numel(), [p] { cpu::layer_norm(p); });
}

// x: [rows, 2 * size]. out: [rows, size] contiguous. act: silu, gelu or gelu_tanh.
void gated(const TensorView& x, const std::string& act, const TensorView& out) {
  expect_rows(x, 2, "x");
  expect(x.dim(1) % 2 == 0, "x must have an even number of columns");
  expect_like(out, x.dtype, x.numel() / 2, "out");
  const cpu::GatedParams p{.dtype = x.dtype,
                           .x = x.data,
                           .out = out.data,
                           .rows = x.dim(0),
                           .size = x.dim(1) / 2,
                           .x_stride = x.step(0),
                           .gate = as_gate(act)};
  run(x.numel() * 4, [p] { cpu::gated(p); });
}

cpu::KvFormat kv_format(const TensorView& cache, DType dtype, const std::string& format) {
  if (format.empty()) {
    expect(cache.dtype == dtype, "the cache must have the dtype of q and k, or a kv_format");
    if (dtype == DType::kBF16) return cpu::KvFormat::kBF16;
    return dtype == DType::kF16 ? cpu::KvFormat::kF16 : cpu::KvFormat::kF32;
  }
  expect(format == "fp8_e5m2" || format == "fp8_e4m3",
         "kv_format must be \"\", \"fp8_e5m2\" or \"fp8_e4m3\"");
  expect(cache.dtype == DType::kU8, "an fp8 cache must be uint8");
  return format == "fp8_e5m2" ? cpu::KvFormat::kE5M2 : cpu::KvFormat::kE4M3;
}

// Whether v is the head of k's rows: the values of latent attention (MLA).
bool is_latent(const TensorView& k_cache, const TensorView& v_cache) {
  return v_cache.data == k_cache.data && k_cache.ndim == 4 && v_cache.ndim == 4 &&
         k_cache.is_contiguous() && k_cache.dtype == v_cache.dtype &&
         v_cache.dim(3) <= k_cache.dim(3) && v_cache.step(3) == 1 && k_cache.dim(1) == 1 &&
         k_cache.dim(0) == v_cache.dim(0) && k_cache.dim(1) == v_cache.dim(1) &&
         k_cache.dim(2) == v_cache.dim(2) && v_cache.step(0) == k_cache.step(0) &&
         v_cache.step(2) == k_cache.step(2);
}

void expect_caches(const TensorView& k_cache, const TensorView& v_cache) {
  expect_cpu(k_cache, "k_cache");
  expect_cpu(v_cache, "v_cache");
  if (is_latent(k_cache, v_cache)) return;
  expect(k_cache.ndim == 4 && v_cache.ndim == 4 && k_cache.is_contiguous() &&
             v_cache.is_contiguous() && k_cache.dtype == v_cache.dtype &&
             k_cache.dim(0) == v_cache.dim(0) && k_cache.dim(1) == v_cache.dim(1) &&
             k_cache.dim(2) == v_cache.dim(2),
         "k_cache and v_cache must be contiguous [num_pages, kv_heads, page_size, head_dim]");
}

void add_rotary(const TensorView& q, const TensorView& k, const TensorView& positions,
                const TensorView& cos_sin, bool interleaved, cpu::KvStoreParams& p) {
  expect_rows(q, 3, "q");
  expect(q.dtype == k.dtype && q.dim(0) == k.dim(0) && q.dim(2) == k.dim(2),
         "q and k must agree in dtype, tokens and head_dim");
  expect_cpu(cos_sin, "cos_sin");
  expect(cos_sin.dtype == DType::kF32 && cos_sin.ndim == 2 && cos_sin.is_contiguous() &&
             cos_sin.dim(1) % 2 == 0 && cos_sin.dim(1) <= k.dim(2),
         "cos_sin must be contiguous float32 [max_pos, rotary_dim], rotary_dim even and at most "
         "head_dim");
  p.q = q.data;
  p.q_heads = q.dim(1);
  p.q_stride = q.step(0);
  p.q_head_stride = q.step(1);
  p.positions = int32s(positions, k.dim(0), "positions");
  p.cos_sin = cos_sin.ptr<float>();
  p.rotary_dim = cos_sin.dim(1);
  p.interleaved = interleaved;
}

void add_keys(const TensorView& k, cpu::KvStoreParams& p) {
  expect_rows(k, 3, "k");
  p.dtype = k.dtype;
  p.tokens = k.dim(0);
  p.k = k.data;
  p.kv_heads = k.dim(1);
  p.k_stride = k.step(0);
  p.k_head_stride = k.step(1);
  p.head_dim = k.dim(2);
}

struct Cache {
  const TensorView& k;
  const TensorView& v;
  const std::string& format;
  float k_scale, v_scale;
};

void add_store(const TensorView& v, const TensorView& slots, const Cache& cache,
               cpu::KvStoreParams& p) {
  expect_rows(v, 3, "v");
  expect_caches(cache.k, cache.v);
  expect(v.dtype == p.dtype && v.dim(0) == p.tokens && v.dim(1) == p.kv_heads,
         "k and v must agree in dtype, tokens and heads");
  expect(cache.k.dim(1) == p.kv_heads && cache.k.dim(3) == p.head_dim && cache.v.dim(3) == v.dim(2),
         "the caches must have the heads and head_dim of k and v");
  p.format = kv_format(cache.k, p.dtype, cache.format);
  p.v = v.data;
  p.v_stride = v.step(0);
  p.v_head_stride = v.step(1);
  p.v_head_dim = v.dim(2);
  p.k_cache = cache.k.data;
  p.v_cache = cache.v.data;
  p.slots = int32s(slots, p.tokens, "slots");
  p.page_size = cache.k.dim(2);
  p.k_scale = cache.k_scale;
  p.v_scale = cache.v_scale;
}

void run_kv_store(const cpu::KvStoreParams& p) {
  run(p.tokens * (p.q_heads + 2 * p.kv_heads) * p.head_dim, [p] { cpu::kv_store(p); });
}

// q: [T, Hq, D], k: [T, Hk, D], rotated in place. positions: int32 [T]. cos_sin: f32 [P,
// rotary_dim].
void rotary(const TensorView& q, const TensorView& k, const TensorView& positions,
            const TensorView& cos_sin, bool interleaved) {
  cpu::KvStoreParams p{};
  add_keys(k, p);
  add_rotary(q, k, positions, cos_sin, interleaved, p);
  run_kv_store(p);
}

// k: [T, Hk, D]. v: [T, Hk, Dv]. slots: int32 [T]. k_cache, v_cache: [pages, Hk, page_size, D or
// Dv].
void store_kv(const TensorView& k, const TensorView& v, const TensorView& slots,
              const TensorView& k_cache, const TensorView& v_cache, const std::string& format,
              float k_scale, float v_scale) {
  cpu::KvStoreParams p{};
  add_keys(k, p);
  add_store(v, slots, {k_cache, v_cache, format, k_scale, v_scale}, p);
  run_kv_store(p);
}

// x: [T, 1, D]. cache: [pages, 1, page_size, D].
void store_latent(const TensorView& x, const TensorView& slots, const TensorView& cache,
                  const std::string& format, float scale) {
  cpu::KvStoreParams p{};
  add_keys(x, p);
  expect_cpu(cache, "cache");
  expect(cache.ndim == 4 && cache.is_contiguous() && cache.dim(1) == p.kv_heads &&
             cache.dim(3) == p.head_dim,
         "cache must be contiguous [num_pages, heads, page_size, head_dim] of x's heads");
  p.format = kv_format(cache, p.dtype, format);
  p.k_cache = cache.data;
  p.slots = int32s(slots, p.tokens, "slots");
  p.page_size = cache.dim(2);
  p.k_scale = scale;
  run_kv_store(p);
}

// Both of the above.
void rotary_store_kv(const TensorView& q, const TensorView& k, const TensorView& v,
                     const TensorView& positions, const TensorView& cos_sin,
                     const TensorView& slots, const TensorView& k_cache, const TensorView& v_cache,
                     bool interleaved, const std::string& format, float k_scale, float v_scale) {
  cpu::KvStoreParams p{};
  add_keys(k, p);
  add_rotary(q, k, positions, cos_sin, interleaved, p);
  add_store(v, slots, {k_cache, v_cache, format, k_scale, v_scale}, p);
  run_kv_store(p);
}

// q: [T, Hq, D]. caches: [pages, Hk, page_size, D or Dv], or v_cache a view of k_cache's first Dv
// columns. rows, seq_lens: int32 [B]. q_indptr:
// int32 [B + 1]. page_table: int32 [R, max_pages]. out: [T, Hq, Dv] contiguous.
void paged_attention(const TensorView& q, const TensorView& k_cache, const TensorView& v_cache,
                     const TensorView& rows, const TensorView& q_indptr, const TensorView& seq_lens,
                     const TensorView& page_table, float scale, int64_t window_left, float softcap,
                     bool causal, const std::string& format, float k_scale, float v_scale,
                     const TensorView& out) {
  expect_rows(q, 3, "q");
  expect_caches(k_cache, v_cache);
  expect(k_cache.dim(3) == q.dim(2) && k_cache.dim(1) > 0 && q.dim(1) % k_cache.dim(1) == 0,
         "q must have the cache's head_dim and a multiple of its heads");
  expect_like(out, q.dtype, q.dim(0) * q.dim(1) * v_cache.dim(3), "out");
  expect(page_table.ndim == 2, "page_table must be int32 [rows, max_pages]");
  const int64_t num_seqs = rows.numel();
  const cpu::AttentionParams p{.dtype = q.dtype,
                               .q = q.data,
                               .q_stride = q.step(0),
                               .q_head_stride = q.step(1),
                               .q_heads = q.dim(1),
                               .head_dim = q.dim(2),
                               .out = out.data,
                               .k_cache = k_cache.data,
                               .v_cache = v_cache.data,
                               .kv_heads = k_cache.dim(1),
                               .page_size = k_cache.dim(2),
                               .v_head_dim = v_cache.dim(3),
                               .format = kv_format(k_cache, q.dtype, format),
                               .k_scale = format.empty() ? 1.0F : k_scale,
                               .v_scale = format.empty() ? 1.0F : v_scale,
                               .rows = int32s(rows, 0, "rows"),
                               .q_indptr = int32s(q_indptr, num_seqs + 1, "q_indptr"),
                               .seq_lens = int32s(seq_lens, num_seqs, "seq_lens"),
                               .page_table = int32s(page_table, 0, "page_table"),
                               .num_seqs = num_seqs,
                               .page_stride = page_table.dim(1),
                               .scale = scale,
                               .softcap = softcap,
                               .window_left = window_left,
                               .causal = causal};
  expect(p.q_indptr[num_seqs] <= q.dim(0), "q_indptr must end at or before the last token");
  run(kReleaseElements, [p] { cpu::attention(p); });
}

// x: [rows, in]. weight: [out, in]. bias: [out]. y: [rows, out] contiguous.
void linear(const TensorView& x, const TensorView& weight, const std::optional<TensorView>& bias,
            const TensorView& y) {
  expect_rows(x, 2, "x");
  expect_rows(weight, 2, "weight");
  expect(weight.dtype == x.dtype && weight.dim(1) == x.dim(1),
         "weight must be [out, in] of x's dtype, in being x's columns");
  if (bias) expect_like(*bias, x.dtype, weight.dim(0), "bias");
  expect_like(y, x.dtype, x.dim(0) * weight.dim(0), "y");
  const cpu::LinearParams p{.dtype = x.dtype,
                            .x = x.data,
                            .w = weight.data,
                            .scales = nullptr,
                            .group = x.dim(1),
                            .bias = bias ? bias->data : nullptr,
                            .y = y.data,
                            .rows = x.dim(0),
                            .in = x.dim(1),
                            .out = weight.dim(0),
                            .x_stride = x.step(0),
                            .w_stride = weight.step(0),
                            .y_stride = weight.dim(0),
                            .x32 = nullptr,
                            .x32_stride = 0};
  run(p.rows * p.in * p.out, [p] { cpu::linear(p); });
}

// The same with weight e4m3 (as uint8) [out, in], stored * scale; scales: float32 [out], or
// [out, ceil(in / 128)] of groups.
void linear_fp8(const TensorView& x, const TensorView& weight, const TensorView& scales,
                const std::optional<TensorView>& bias, const TensorView& y) {
  constexpr int64_t kGroup = 128;
  expect_rows(x, 2, "x");
  expect_cpu(weight, "weight");
  expect(weight.ndim == 2 && weight.dtype == DType::kU8 && weight.dim(1) == x.dim(1) &&
             weight.step(1) == 1,
         "weight must be uint8 [out, in] with contiguous rows, in being x's columns");
  const bool grouped = scales.ndim == 2;
  const int64_t num_groups = grouped ? (x.dim(1) + kGroup - 1) / kGroup : 1;
  expect_like(scales, DType::kF32, weight.dim(0) * num_groups, "scales");
  if (bias) expect_like(*bias, x.dtype, weight.dim(0), "bias");
  expect_like(y, x.dtype, x.dim(0) * weight.dim(0), "y");
  const cpu::LinearParams p{.dtype = x.dtype,
                            .x = x.data,
                            .w = weight.data,
                            .scales = scales.ptr<float>(),
                            .group = grouped ? kGroup : x.dim(1),
                            .bias = bias ? bias->data : nullptr,
                            .y = y.data,
                            .rows = x.dim(0),
                            .in = x.dim(1),
                            .out = weight.dim(0),
                            .x_stride = x.step(0),
                            .w_stride = weight.step(0),
                            .y_stride = weight.dim(0),
                            .x32 = nullptr,
                            .x32_stride = 0};
  run(p.rows * p.in * p.out, [p] { cpu::linear(p); });
}

// ids: int32 [T]. weight: [V, H]. out: [T, H] contiguous.
void embedding(const TensorView& ids, const TensorView& weight, const TensorView& out) {
  expect_rows(weight, 2, "weight");
  const int64_t rows = ids.numel();
  expect_like(out, weight.dtype, rows * weight.dim(1), "out");
  const auto row_bytes = static_cast<size_t>(weight.dim(1)) * dtype_bytes(weight.dtype);
  const cpu::EmbeddingParams p{
      .ids = int32s(ids, 0, "ids"),
      .rows = rows,
      .weight = weight.ptr<char>(),
      .vocab = weight.dim(0),
      .row_bytes = row_bytes,
      .stride_bytes = static_cast<size_t>(weight.step(0)) * dtype_bytes(weight.dtype),
      .out = out.ptr<char>()};
  run(rows * weight.dim(1), [p] { cpu::embedding(p); });
}

// Every tensor int32 contiguous; shapes as in docs/contracts.md section 3.
void prepare_step(const TensorView& message, const TensorView& page_table,
                  const TensorView& last_tokens, const TensorView& slot_tokens,
                  const py::tuple& buffers, int64_t padded_seqs, int64_t padded_tokens) {
  expect_not_recording();
  expect(buffers.size() == 12, "buffers must be the twelve tensors of StepBuffers");
  const auto view = [&buffers](size_t i) { return buffers[i].cast<TensorView>(); };
  expect(page_table.ndim == 2, "page_table must be int32 [rows, max_pages]");
  const int64_t max_tokens = view(0).numel();
  const int64_t max_seqs = view(4).numel();
  const int64_t max_logits = view(8).numel();
  const cpu::StepParams p{
      .message = int32s(message, 0, "message"),
      .message_words = message.numel(),
      .page_table = int32s_out(page_table, 1, "page_table"),
      .num_rows = page_table.dim(0),
      .page_stride = page_table.dim(1),
      .last_tokens = int32s(last_tokens, page_table.dim(0), "last_tokens"),
      .slot_tokens = int32s_out(slot_tokens, 0, "slot_tokens"),
      .num_slots = slot_tokens.numel(),
      .token_ids = int32s_out(view(0), max_tokens, "token_ids"),
      .positions = int32s_out(view(1), max_tokens, "positions"),
      .slots = int32s_out(view(2), max_tokens, "slots"),
      .token_seq = int32s_out(view(3), max_tokens, "token_seq"),
      .rows = int32s_out(view(4), max_seqs, "rows"),
      .seq_lens = int32s_out(view(5), max_seqs, "seq_lens"),
      .prompt_lens = int32s_out(view(6), max_seqs, "prompt_lens"),
      .q_indptr = int32s_out(view(7), max_seqs + 1, "q_indptr"),
      .logit_idx = int32s_out(view(8), max_logits, "logit_idx"),
      .logit_targets = int32s_out(view(9), max_logits, "logit_targets"),
      .sampling = int32s_out(view(10), max_seqs * 16, "sampling"),
      .sample_rows = int32s_out(view(11), max_seqs, "sample_rows"),
      .max_tokens = max_tokens,
      .max_seqs = max_seqs,
      .max_logits = max_logits,
      .padded_seqs = padded_seqs,
      .padded_tokens = padded_tokens,
  };
  run_once(padded_tokens * 16, [&] { cpu::prepare_step(p); });
}

// logits: [S, V]. sampling: int32 [>= S, 16]. tokens: int32 [S], written; last_tokens at
// sample_rows.
void sample(const TensorView& logits, const TensorView& message, const TensorView& sampling,
            const TensorView& sample_rows, const TensorView& rows, const TensorView& seq_lens,
            const TensorView& prompt_lens, const TensorView& page_table,
            const TensorView& slot_tokens, const TensorView& last_tokens, int64_t page_size,
            const std::optional<TensorView>& bitmask, const TensorView& tokens) {
  expect_not_recording();
  expect_rows(logits, 2, "logits");
  expect(logits.dim(1) > 0, "logits must have at least one column");
  expect(page_table.ndim == 2, "page_table must be int32 [rows, max_pages]");
  const int64_t num_rows = logits.dim(0);
  const int32_t* words = int32s(message, 32, "message");
  expect(words[14] >= 0 && words[14] <= message.numel(), "message has its extra section outside");
  expect(!bitmask || (bitmask->ndim == 2 && bitmask->dim(1) * 32 >= logits.dim(1)),
         "bitmask must be int32 [rows, ceil(vocab / 32)]");
  const cpu::SampleParams p{
      .dtype = logits.dtype,
      .logits = logits.data,
      .rows = num_rows,
      .vocab = logits.dim(1),
      .logits_stride = logits.step(0),
      .records = int32s(sampling, num_rows * 16, "sampling"),
      .sample_rows = int32s(sample_rows, num_rows, "sample_rows"),
      .extra = words + words[14],
      .seq_rows = int32s(rows, 0, "rows"),
      .seq_lens = int32s(seq_lens, 0, "seq_lens"),
      .prompt_lens = int32s(prompt_lens, 0, "prompt_lens"),
      .page_table = int32s(page_table, 0, "page_table"),
      .page_stride = page_table.dim(1),
      .page_size = page_size,
      .slot_tokens = int32s(slot_tokens, 0, "slot_tokens"),
      .bitmask = bitmask ? int32s(*bitmask, 0, "bitmask") : nullptr,
      .bitmask_stride = bitmask ? bitmask->dim(1) : 0,
      .last_tokens = int32s_out(last_tokens, page_table.dim(0), "last_tokens"),
      .tokens = int32s_out(tokens, num_rows, "tokens"),
  };
  run_once(logits.numel(), [&] { cpu::sample(p); });
}

// logits: [S, V]. tokens: int32 [S]. out: f32 [S].
void token_logprobs(const TensorView& logits, const TensorView& tokens, const TensorView& out) {
  expect_not_recording();
  expect_rows(logits, 2, "logits");
  const int32_t* ids = int32s(tokens, logits.dim(0), "tokens");
  for (int64_t i = 0; i < logits.dim(0); ++i) {
    expect(ids[i] >= 0 && ids[i] < logits.dim(1), "tokens must lie in the vocabulary");
  }
  expect_like(out, DType::kF32, logits.dim(0), "out");
  const cpu::LogprobParams p{.dtype = logits.dtype,
                             .logits = logits.data,
                             .rows = logits.dim(0),
                             .vocab = logits.dim(1),
                             .logits_stride = logits.step(0),
                             .tokens = ids,
                             .logprobs = out.ptr<float>()};
  run_once(logits.numel(), [&] { cpu::token_logprobs(p); });
}

}  // namespace

void bind_cpu(py::module_& m) {
  py::class_<CpuTape>(m, "CpuTape")
      .def(py::init<>())
      .def("begin", &CpuTape::begin)
      .def("end", &CpuTape::end)
      .def("replay", &CpuTape::replay, py::call_guard<py::gil_scoped_release>())
      .def("__len__", &CpuTape::size);
  m.def("cpu_isa", [] { return cpu::isa_name(cpu::active_isa()); });
  m.def("cpu_release_threads", &cpu::release_threads);
  m.def("cpu_rms_norm", &rms_norm, "x"_a, "weight"_a, "eps"_a, "weight_offset"_a, "residual"_a,
        "out"_a);
  m.def("cpu_layer_norm", &layer_norm, "x"_a, "weight"_a, "bias"_a, "eps"_a, "out"_a);
  m.def("cpu_gated", &gated, "x"_a, "act"_a, "out"_a);
  m.def("cpu_rotary", &rotary, "q"_a, "k"_a, "positions"_a, "cos_sin"_a, "interleaved"_a);
  m.def("cpu_store_kv", &store_kv, "k"_a, "v"_a, "slots"_a, "k_cache"_a, "v_cache"_a, "kv_format"_a,
        "k_scale"_a, "v_scale"_a);
  m.def("cpu_store_latent", &store_latent, "x"_a, "slots"_a, "cache"_a, "kv_format"_a, "scale"_a);
  m.def("cpu_rotary_store_kv", &rotary_store_kv, "q"_a, "k"_a, "v"_a, "positions"_a, "cos_sin"_a,
        "slots"_a, "k_cache"_a, "v_cache"_a, "interleaved"_a, "kv_format"_a, "k_scale"_a,
        "v_scale"_a);
  m.def("cpu_paged_attention", &paged_attention, "q"_a, "k_cache"_a, "v_cache"_a, "rows"_a,
        "q_indptr"_a, "seq_lens"_a, "page_table"_a, "scale"_a, "window_left"_a, "softcap"_a,
        "causal"_a, "kv_format"_a, "k_scale"_a, "v_scale"_a, "out"_a);
  m.def("cpu_linear", &linear, "x"_a, "weight"_a, "bias"_a, "y"_a);
  m.def("cpu_linear_fp8", &linear_fp8, "x"_a, "weight"_a, "scales"_a, "bias"_a, "y"_a);
  m.def("cpu_embedding", &embedding, "ids"_a, "weight"_a, "out"_a);
  m.def("cpu_prepare_step", &prepare_step, "message"_a, "page_table"_a, "last_tokens"_a,
        "slot_tokens"_a, "buffers"_a, "padded_seqs"_a, "padded_tokens"_a);
  m.def("cpu_sample", &sample, "logits"_a, "message"_a, "sampling"_a, "sample_rows"_a, "rows"_a,
        "seq_lens"_a, "prompt_lens"_a, "page_table"_a, "slot_tokens"_a, "last_tokens"_a,
        "page_size"_a, "bitmask"_a, "tokens"_a);
  m.def("cpu_token_logprobs", &token_logprobs, "logits"_a, "tokens"_a, "out"_a);
}

}  // namespace srt::bind
