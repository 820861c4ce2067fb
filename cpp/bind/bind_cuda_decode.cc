// Decode attention on CUDA: the step's plan on the host, and the kernel.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <bit>
#include <optional>
#include <vector>

#include "attention/decode.h"
#include "attention/plan.h"
#include "attention/share.h"
#include "bind/bind.h"
#include "bind/cuda_args.h"
#include "bind/dlpack.h"
#include "common/fp8_rows.h"
#include "core/step_message.h"

namespace srt::bind {

namespace py = pybind11;
using namespace py::literals;

namespace {

// cuda/ includes nothing from cpp/: the words it names must be the message's.
static_assert(cuda::message::kMaxDrafts == msg::kMaxDrafts &&
              int{cuda::message::kNumDecode} == int{msg::kNumDecode} &&
              int{cuda::message::kNumTokens} == int{msg::kNumTokens} &&
              int{cuda::message::kNumWork} == int{msg::kNumWork} &&
              int{cuda::message::kOffSeqs} == int{msg::kOffSeqs} &&
              int{cuda::message::kOffWork} == int{msg::kOffWork} &&
              int{cuda::message::kSeqRow} == int{msg::kSeqRow} &&
              int{cuda::message::kSeqLen} == int{msg::kSeqLen} &&
              int{cuda::message::kSeqWords} == int{msg::kSeqWords});

cuda::KvDtype parse_kv_format(const std::string& format) {
  if (format.empty()) return cuda::KvDtype::kSame;
  if (format == "fp8_e4m3") return cuda::KvDtype::kE4M3;
  if (format == "fp8_e5m2") return cuda::KvDtype::kE5M2;
  throw InvalidArgument("kv_format must be '', 'fp8_e4m3' or 'fp8_e5m2', not '" + format + "'");
}

// num_sms: 0 for this device's; another number only plans.
cuda::DecodeGrid make_grid(int num_q_heads, int num_kv_heads, int head_dim,
                           const std::string& kv_format, int num_sms) {
  expect(num_kv_heads > 0 && num_q_heads > 0 && num_q_heads % num_kv_heads == 0,
         "num_q_heads must be a multiple of num_kv_heads");
  const cuda::DecodeGrid grid =
      cuda::decode_grid(num_q_heads, num_kv_heads, head_dim, parse_kv_format(kv_format),
                        num_sms > 0 ? num_sms : cuda::num_sms());
  expect(grid.plan.num_ctas > 0, "decode attention has no kernel for head_dim " +
                                     std::to_string(head_dim) +
                                     " (64, 80, 96, 128, 192 or 256; 576 for one latent)");
  return grid;
}

// The plans of a step, one for each kind of layer: its grid and its window (-1: none).
using Plans = std::vector<std::pair<cuda::DecodeGrid, int>>;

int64_t plan_words(const Plans& plans) {
  int64_t words = 0;
  for (const auto& [grid, window] : plans)
    words += static_cast<int64_t>(grid.plan.num_ctas) * cuda::kWorkWords;
  return words;
}

cuda::DecodePlanShape plan_shape(const cuda::DecodeGrid& grid, int window) {
  cuda::DecodePlanShape shape = grid.plan;
  shape.window_left = window;
  return shape;
}

int64_t aligned(int64_t words) {
  return (words + msg::kAlignWords - 1) / msg::kAlignWords * msg::kAlignWords;
}

int64_t share_words(const Plans& plans, int num_decode) {
  int64_t words = 0;
  for (const auto& [grid, window] : plans)
    words += aligned(cuda::max_share_words(num_decode, plan_shape(grid, window)));
  return words;
}

int64_t max_plan_words(const Plans& plans, int max_decode) {
  return plan_words(plans) + share_words(plans, max_decode) + msg::kAlignWords;
}

using IntArray = py::array_t<int32_t, py::array::c_style>;

// Views of the plan's arrays by decode; none: nobody shares.
cuda::PrefixGroups prefix_groups(const std::optional<IntArray>& groups,
                                 const std::optional<IntArray>& pages, int page_size,
                                 int num_decode) {
  if (!groups) return {};
  expect(pages && groups->size() == num_decode && pages->size() == num_decode && page_size > 0,
         "prefix_groups and prefix_pages must name a group and its pages for each decode");
  const auto count = static_cast<size_t>(num_decode);
  for (size_t i = 0; i < count; ++i)
    expect(groups->data()[i] < num_decode && pages->data()[i] >= 0,
           "prefix_groups must lie below the number of decodes, prefix_pages must not be negative");
  return {{groups->data(), count}, {pages->data(), count}, page_size};
}

// message: int32 [capacity], a step written by schedule(). The plans stand one behind the other in
// the work section, what they share behind all of them. Returns the bytes that the device needs.
// Planning again replaces the plans.
int64_t plan_decode(const TensorView& message, const Plans& plans,
                    const std::optional<IntArray>& groups, const std::optional<IntArray>& pages,
                    int page_size) {
  expect(message.dtype == DType::kI32 && message.ndim == 1 && message.is_contiguous() &&
             message.device == Device::kCpu,
         "message must be a contiguous int32 vector on the host");
  auto* const words = message.ptr<int32_t>();
  const int64_t capacity = message.dim(0);
  expect(capacity >= msg::kHeaderWords, "message is shorter than its header");
  const int num_decode = words[msg::kNumDecode];
  const cuda::PrefixGroups prefixes = prefix_groups(groups, pages, page_size, num_decode);
  const bool shares = !prefixes.groups.empty();
  const int64_t begin =
      aligned(words[msg::kNumWork] > 0 ? words[msg::kOffWork] : words[msg::kTotalWords]);
  const int64_t records = num_decode > 0 ? plan_words(plans) : 0;
  const int64_t needed = begin + records + (shares ? share_words(plans, num_decode) : 0);
  if (needed > capacity) {
    throw InvalidArgument("message has no room for the decode plan: it needs " +
                          std::to_string(needed) + " words, its capacity is " +
                          std::to_string(capacity));
  }
  const py::gil_scoped_release nogil;
  const int32_t* const seqs = words + words[msg::kOffSeqs];
  int64_t at = begin;
  int64_t end = begin + records;
  for (const auto& [grid, window] : plans) {
    if (num_decode == 0) break;
    const cuda::DecodePlanShape shape = plan_shape(grid, window);
    const int64_t used =
        shares ? cuda::plan_share(seqs, num_decode, shape, prefixes, words + end) : 0;
    cuda::plan_decode(seqs, num_decode, shape, words + at, used > 0 ? words + end : nullptr,
                      static_cast<int>(end - at));
    at += static_cast<int64_t>(shape.num_ctas) * cuda::kWorkWords;
    end += aligned(used);
  }
  words[msg::kNumWork] = static_cast<int32_t>(records / cuda::kWorkWords);
  words[msg::kOffWork] = static_cast<int32_t>(begin);
  words[msg::kTotalWords] = static_cast<int32_t>(end);
  return end * static_cast<int64_t>(sizeof(int32_t));
}

// Whether any of a planned message's decodes read a shared prefix once.
bool plan_shares(const TensorView& message, const Plans& plans) {
  const auto* const words = message.ptr<int32_t>();
  if (words[msg::kNumWork] == 0) return false;
  const int32_t* record = words + words[msg::kOffWork];
  for (const auto& [grid, window] : plans) {
    if (record[cuda::kWorkShare] != 0) return true;
    record += static_cast<int64_t>(grid.plan.num_ctas) * cuda::kWorkWords;
  }
  return false;
}

// The pool's tensors: [num_pages, num_kv_heads, page_size, head_dim], q's dtype or uint8 (fp8).
cuda::KvPool pool_of(const TensorView& k, const TensorView& v, DType q_dtype,
                     const std::string& kv_format, float k_scale, float v_scale) {
  cuda::KvPool pool;
  pool.dtype = parse_kv_format(kv_format);
  const DType want = pool.dtype == cuda::KvDtype::kSame ? q_dtype : DType::kU8;
  expect(k.ndim == 4 && v.ndim == 4 && k.shape == v.shape,
         "k_cache and v_cache must both be [num_pages, num_kv_heads, page_size, head_dim]");
  expect(k.dtype == want && v.dtype == want,
         "k_cache and v_cache must have the dtype of q, or be uint8 with a kv_format");
  expect(k.is_contiguous() && v.is_contiguous(), "k_cache and v_cache must be contiguous");
  expect(std::has_single_bit(static_cast<uint64_t>(k.dim(2))), "page_size must be a power of two");
  expect(k.numel() * static_cast<int64_t>(dtype_bytes(want)) / 16 < int64_t{1} << 32,
         "k_cache must be smaller than 64 GiB");
  pool.k = k.data;
  pool.v = v.data;
  pool.k_scale = k_scale;
  pool.v_scale = v_scale;
  pool.num_pages = static_cast<int>(k.dim(0));
  pool.num_kv_heads = static_cast<int>(k.dim(1));
  pool.log2_page_size = std::countr_zero(static_cast<uint64_t>(k.dim(2)));
  pool.head_dim = pool.head_dim_v = static_cast<int>(k.dim(3));
  return pool;
}

// q, out: bf16 or fp16 [T, num_q_heads, head_dim]. page_table: int32 [rows, max_pages].
// message: int32, the planned step on the device. workspace: uint8 [grid.workspace_bytes].
// out_scales: [T, num_q_heads], written, where out is e4m3 (as uint8; q bf16, head_dim 128).
void decode_attention(const TensorView& q, const TensorView& k_cache, const TensorView& v_cache,
                      const TensorView& page_table, const TensorView& message,
                      const TensorView& workspace, const TensorView& out, float scale,
                      int window_left, float softcap, const std::string& kv_format, float k_scale,
                      float v_scale, int plan_offset, const std::optional<TensorView>& out_scales,
                      bool pdl, uint64_t stream) {
  const bool is_fp8 = out_scales.has_value();
  expect(q.ndim == 3 && out.ndim == 3 && q.shape == out.shape &&
             out.dtype == (is_fp8 ? DType::kU8 : q.dtype),
         "q and out must be [T, num_q_heads, head_dim] of one dtype (out with scales: uint8)");
  expect(!is_fp8 || (q.dtype == DType::kBF16 && q.dim(2) == cuda::kFp8Group),
         "out_scales are for bf16 queries and head_dim 128");
  expect(q.dtype == DType::kBF16 || q.dtype == DType::kF16, "q must be bf16 or fp16");
  for (const TensorView& x : {q, out})
    expect(x.step(2) == 1 && x.step(1) == x.dim(2) && x.step(0) % 4 == 0 &&
               reinterpret_cast<uintptr_t>(x.data) % 8 == 0,
           "heads of q and out must be contiguous and 8-byte aligned");
  cuda::DecodeParams p;
  p.kv = pool_of(k_cache, v_cache, q.dtype, kv_format, k_scale, v_scale);
  expect(p.kv.head_dim == q.dim(2) && q.dim(1) % p.kv.num_kv_heads == 0,
         "q's heads must be a multiple of the pool's, with the same head_dim");
  expect(page_table.dtype == DType::kI32 && page_table.ndim == 2 && page_table.step(1) == 1,
         "page_table must be int32 [rows, max_pages]");
  expect(message.dtype == DType::kI32 && message.is_contiguous(), "message must be int32");
  expect(reinterpret_cast<uintptr_t>(message.data) % 16 == 0, "message must be 16-byte aligned");
  p.num_q_heads = static_cast<int>(q.dim(1));
  const cuda::DecodeGrid grid = cuda::decode_grid(p.num_q_heads, p.kv.num_kv_heads, p.kv.head_dim,
                                                  p.kv.dtype, cuda::num_sms());
  expect(workspace.is_contiguous() &&
             workspace.numel() * static_cast<int64_t>(dtype_bytes(workspace.dtype)) >=
                 static_cast<int64_t>(grid.workspace_bytes),
         "workspace is smaller than grid.workspace_bytes");
  p.q = q.data;
  p.out = out.data;
  p.q_stride = q.step(0);
  p.out_stride = out.step(0);
  p.dtype = q.dtype == DType::kBF16 ? cuda::Dtype::kBF16 : cuda::Dtype::kF16;
  p.num_rows = static_cast<int>(q.dim(0));
  if (is_fp8) {
    const GroupScales heads = group_scales(*out_scales, "out_scales", q.dim(0), q.dim(1));
    p.out_scales = heads.data;
    p.out_scale_stride = heads.stride;
  }
  p.page_table = page_table.ptr<int32_t>();
  p.page_table_stride = page_table.step(0);
  p.scoring.scale = scale;
  p.scoring.softcap = softcap;
  p.scoring.window_left = window_left;
  p.message = message.ptr<int32_t>();
  p.plan_offset = plan_offset;
  p.workspace = workspace.data;
  p.pdl = pdl;
  check_cuda(cuda::decode_attention(p, as_stream(stream)), "decode_attention");
}

}  // namespace

void bind_cuda_decode(py::module_& m) {
  m.attr("DECODE_HEAD_DIMS") = py::make_tuple(64, 80, 96, 128, 192, 256);
  py::class_<cuda::DecodeGrid>(m, "DecodeGrid",
                               "How this device runs decode attention for a model's heads.")
      .def(py::init(&make_grid), "num_q_heads"_a, "num_kv_heads"_a, "head_dim"_a,
           "kv_format"_a = "", "num_sms"_a = 0)
      .def_property_readonly("num_ctas", [](const cuda::DecodeGrid& g) { return g.plan.num_ctas; })
      .def_property_readonly("num_head_blocks",
                             [](const cuda::DecodeGrid& g) { return g.plan.num_head_blocks; })
      .def_property_readonly("tile_tokens",
                             [](const cuda::DecodeGrid& g) { return g.plan.tile_tokens; })
      .def_property_readonly("round_tokens",
                             [](const cuda::DecodeGrid& g) { return g.plan.round_tokens(); })
      .def_property(
          "round_weight", [](const cuda::DecodeGrid& g) { return g.plan.round_weight; },
          [](cuda::DecodeGrid& g, double weight) { g.plan.round_weight = weight; })
      .def_property_readonly("share_rows",
                             [](const cuda::DecodeGrid& g) { return g.plan.share_rows; })
      .def_readonly("workspace_bytes", &cuda::DecodeGrid::workspace_bytes);
  m.def("decode_plan_words", &plan_words, "plans"_a,
        "Words from a plan's work section on to where the plan behind these stands.");
  m.def("max_decode_plan_words", &max_plan_words, "plans"_a, "max_decode"_a,
        "The most words that plan_decode appends to a message.");
  m.def("plan_decode", &plan_decode, "message"_a, "plans"_a, "prefix_groups"_a = py::none(),
        "prefix_pages"_a = py::none(), "page_size"_a = 1,
        "Appends the decode work lists to a host message; returns the bytes to copy.");
  m.def("plan_shares", &plan_shares, "message"_a, "plans"_a,
        "Whether a planned message's decodes read a shared prefix once.");
  m.def("cuda_decode_attention", &decode_attention, "q"_a, "k_cache"_a, "v_cache"_a, "page_table"_a,
        "message"_a, "workspace"_a, "out"_a, py::kw_only(), "scale"_a, "window_left"_a = -1,
        "softcap"_a = 0.0f, "kv_format"_a = "", "k_scale"_a = 1.0f, "v_scale"_a = 1.0f,
        "plan_offset"_a = 0, "out_scales"_a = py::none(), "pdl"_a = false, "stream"_a,
        "Attention of the message's decode rows; tokens beyond the step's get zeros.");
}

}  // namespace srt::bind
