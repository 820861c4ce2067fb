// Extend attention on CUDA: the step's tile plan, and the kernel of every layer.
#include <bit>
#include <optional>
#include <string>

#include "attention/extend.h"
#include "bind/bind.h"
#include "bind/cuda_args.h"
#include "bind/dlpack.h"

namespace srt::bind {

namespace py = pybind11;
using namespace py::literals;

namespace {

cuda::KvDtype to_kv_dtype(const std::string& format) {
  if (format.empty()) return cuda::KvDtype::kSame;
  if (format == "fp8_e4m3") return cuda::KvDtype::kE4M3;
  if (format == "fp8_e5m2") return cuda::KvDtype::kE5M2;
  throw InvalidArgument("kv_format must be '', 'fp8_e4m3' or 'fp8_e5m2', not '" + format + "'");
}

bool is_int32_vector(const TensorView& x, int64_t length) {
  return x.dtype == DType::kI32 && x.ndim == 1 && x.dim(0) >= length && x.is_contiguous();
}

bool is_aligned(const TensorView& x) { return reinterpret_cast<uintptr_t>(x.data) % 16 == 0; }

void check_heads(int num_q_heads, int num_kv_heads) {
  expect(num_kv_heads >= 1 && num_kv_heads <= 512 && num_q_heads % num_kv_heads == 0,
         "num_q_heads must be a multiple of num_kv_heads, which must be at most 512");
  const int group = num_q_heads / num_kv_heads;
  expect(group >= 1 && group <= cuda::kExtendTileRows,
         "query heads per KV head must be between 1 and " + std::to_string(cuda::kExtendTileRows));
}

// int32 words of the plan buffer for at most this many tokens and sequences.
int64_t extend_plan_words(int64_t num_tokens, int64_t num_seqs, int num_q_heads, int num_kv_heads) {
  check_heads(num_q_heads, num_kv_heads);
  return cuda::extend_plan_words(num_tokens, num_seqs, num_q_heads, num_kv_heads);
}

// q_indptr: int32 [num_seqs + 1]. seq_lens, rows: int32 [num_seqs]. plan: int32
// [extend_plan_words]. num_decode: int32 [1] on the device, in place of first_seq.
void plan_extend(const TensorView& q_indptr, const TensorView& seq_lens, const TensorView& rows,
                 const TensorView& plan, int64_t num_tokens, int first_seq, int num_q_heads,
                 int num_kv_heads, int key_bytes, const std::optional<TensorView>& num_decode,
                 uint64_t stream) {
  expect(seq_lens.ndim == 1 && is_int32_vector(seq_lens, 0), "seq_lens must be int32 [num_seqs]");
  const int64_t num_seqs = seq_lens.dim(0);
  const int64_t words = extend_plan_words(num_tokens, num_seqs, num_q_heads, num_kv_heads);
  expect(is_int32_vector(q_indptr, num_seqs + 1), "q_indptr must be int32 [num_seqs + 1]");
  expect(is_int32_vector(rows, num_seqs), "rows must be int32 [num_seqs]");
  expect(is_int32_vector(plan, words) && is_aligned(plan),
         "plan must be int32 [extend_plan_words(...)] and 16-byte aligned");
  expect(first_seq >= 0 && key_bytes > 0, "first_seq must not be negative, key_bytes positive");
  expect(!num_decode || is_int32_vector(*num_decode, 1), "num_decode must be int32 [1]");
  cuda::ExtendPlanParams p;
  p.q_indptr = q_indptr.ptr<int32_t>();
  p.seq_lens = seq_lens.ptr<int32_t>();
  p.rows = rows.ptr<int32_t>();
  p.num_decode = num_decode ? num_decode->ptr<int32_t>() : nullptr;
  p.plan = plan.ptr<int32_t>();
  p.plan_words = words;
  p.first_seq = first_seq;
  p.num_seqs = static_cast<int>(num_seqs);
  p.num_q_heads = num_q_heads;
  p.num_kv_heads = num_kv_heads;
  p.key_bytes = key_bytes;
  check_cuda(cuda::plan_extend(p, as_stream(stream)), "extend_plan");
}

// k: [num_pages, num_kv_heads, page_size, head_dim]; v: the same with head_dim_v.
cuda::KvPool to_pool(const TensorView& q, const TensorView& k, const TensorView& v,
                     const std::string& kv_format, float k_scale, float v_scale) {
  const cuda::KvDtype dtype = to_kv_dtype(kv_format);
  expect(k.ndim == 4 && v.ndim == 4 && k.is_contiguous() && v.is_contiguous(),
         "k and v must be contiguous [num_pages, num_kv_heads, page_size, head_dim]");
  expect(k.dim(0) == v.dim(0) && k.dim(1) == v.dim(1) && k.dim(2) == v.dim(2),
         "k and v must agree in all but the head size");
  const DType stored = kv_format.empty() ? q.dtype : DType::kU8;
  expect(k.dtype == stored && v.dtype == stored,
         "k and v must have the dtype of q, or be uint8 where kv_format is an fp8 format");
  const auto page_size = static_cast<uint64_t>(k.dim(2));
  expect(std::has_single_bit(page_size), "page_size must be a power of two");
  expect(is_aligned(k) && is_aligned(v), "k and v must be 16-byte aligned");
  cuda::KvPool pool;
  pool.k = k.data;
  pool.v = v.data;
  pool.dtype = dtype;
  pool.k_scale = k_scale;
  pool.v_scale = v_scale;
  pool.num_pages = static_cast<int>(k.dim(0));
  pool.num_kv_heads = static_cast<int>(k.dim(1));
  pool.log2_page_size = std::countr_zero(page_size);
  pool.head_dim = static_cast<int>(k.dim(3));
  pool.head_dim_v = static_cast<int>(v.dim(3));
  return pool;
}

void check_queries(const TensorView& q, const TensorView& out, const cuda::KvPool& kv) {
  expect(q.ndim == 3 && out.ndim == 3, "q and out must be [num_tokens, num_q_heads, head_dim]");
  expect(q.dtype == DType::kBF16 || q.dtype == DType::kF16, "q must be bf16 or fp16");
  expect(out.dtype == q.dtype, "out must have the dtype of q");
  expect(q.dim(2) == kv.head_dim && out.dim(2) == kv.head_dim_v,
         "q and k, and out and v, must have the same head size");
  expect(q.dim(0) == out.dim(0) && q.dim(1) == out.dim(1), "out must have the rows of q");
  expect(kv.num_kv_heads > 0 && q.dim(1) % kv.num_kv_heads == 0,
         "num_q_heads must be a multiple of num_kv_heads");
  expect(q.step(2) == 1 && q.step(1) == q.dim(2) && out.step(2) == 1 && out.step(1) == out.dim(2),
         "the heads of a token must be neighbours in q and in out");
  expect(q.step(0) % 8 == 0 && out.step(0) % 8 == 0 && is_aligned(q) && is_aligned(out),
         "rows of q and out must be 16-byte aligned");
}

// q: [num_tokens, num_q_heads, head_dim]. k, v: see to_pool. page_table: int32 [num_rows, pages].
// num_seqs, plan: as given to extend_plan and filled by it.
// out: [num_tokens, num_q_heads, head_dim_v]. lse: f32 [num_q_heads, >= num_tokens] or None.
void extend_attention(const TensorView& q, const TensorView& k, const TensorView& v,
                      const TensorView& page_table, int64_t num_seqs, const TensorView& plan,
                      const TensorView& out, const std::optional<TensorView>& lse, float scale,
                      float softcap, int window_left, bool causal, const std::string& kv_format,
                      float k_scale, float v_scale, bool portable, uint64_t stream) {
  cuda::ExtendParams p;
  p.kv = to_pool(q, k, v, kv_format, k_scale, v_scale);
  check_queries(q, out, p.kv);
  expect(page_table.dtype == DType::kI32 && page_table.ndim == 2 && page_table.step(1) == 1,
         "page_table must be int32 [num_rows, max_pages] with contiguous rows");
  expect(num_seqs >= 0, "num_seqs must not be negative");
  const int64_t words =
      extend_plan_words(q.dim(0), num_seqs, static_cast<int>(q.dim(1)), p.kv.num_kv_heads);
  expect(is_int32_vector(plan, words), "plan must be int32 [extend_plan_words(...)]");
  expect(scale > 0.0f && softcap >= 0.0f, "scale must be positive, softcap not negative");
  if (lse) {
    expect(lse->dtype == DType::kF32 && lse->ndim == 2 && lse->dim(0) == q.dim(1) &&
               lse->dim(1) >= q.dim(0) && lse->step(1) == 1,
           "lse must be f32 [num_q_heads, num_tokens] with contiguous rows");
    p.lse = lse->ptr<float>();
    p.lse_stride = lse->step(0);
  }
  p.dtype = q.dtype == DType::kBF16 ? cuda::Dtype::kBF16 : cuda::Dtype::kF16;
  p.q = q.data;
  p.q_token_stride = q.step(0);
  p.out = out.data;
  p.out_token_stride = out.step(0);
  p.page_table = page_table.ptr<int32_t>();
  p.page_table_stride = page_table.step(0);
  p.plan = plan.ptr<int32_t>();
  p.scoring.scale = scale;
  p.scoring.softcap = softcap;
  p.scoring.causal = causal;
  p.scoring.window_left = window_left;
  p.num_tokens = static_cast<int>(q.dim(0));
  p.num_seqs = static_cast<int>(num_seqs);
  p.num_q_heads = static_cast<int>(q.dim(1));
  const auto launcher = portable ? &cuda::extend_portable : &cuda::extend_attention;
  check_cuda(launcher(p, as_stream(stream)), "extend_attention (is there a kernel for head_dim?)");
}

}  // namespace

void bind_cuda_extend(py::module_& m) {
  m.def("cuda_extend_plan_words", &extend_plan_words, "num_tokens"_a, "num_seqs"_a, "num_q_heads"_a,
        "num_kv_heads"_a, "int32 words of a plan for at most this many tokens and sequences.");
  m.def("cuda_extend_plan", &plan_extend, "q_indptr"_a, "seq_lens"_a, "rows"_a, "plan"_a,
        py::kw_only(), "num_tokens"_a, "first_seq"_a, "num_q_heads"_a, "num_kv_heads"_a,
        "key_bytes"_a, "num_decode"_a = py::none(), "stream"_a,
        "Orders the query tiles of sequences [first_seq, num_seqs) for all layers: once a step.");
  m.def("cuda_extend_attention", &extend_attention, "q"_a, "k"_a, "v"_a, "page_table"_a,
        "num_seqs"_a, "plan"_a, "out"_a, "lse"_a = py::none(), py::kw_only(), "scale"_a,
        "softcap"_a = 0.0f, "window_left"_a = -1, "causal"_a = true, "kv_format"_a = "",
        "k_scale"_a = 1.0f, "v_scale"_a = 1.0f, "portable"_a = false, "stream"_a,
        "Attention of the planned sequences' queries over their KV pages.");
}

}  // namespace srt::bind
