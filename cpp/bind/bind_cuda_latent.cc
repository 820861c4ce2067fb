// Latent attention (MLA) on CUDA.
#include <bit>

#include "attention/latent.h"
#include "bind/bind.h"
#include "bind/cuda_args.h"
#include "bind/dlpack.h"

namespace srt::bind {

namespace py = pybind11;
using namespace py::literals;

namespace {

cuda::KvDtype parse_format(const std::string& format) {
  if (format.empty()) return cuda::KvDtype::kSame;
  if (format == "fp8_e4m3") return cuda::KvDtype::kE4M3;
  if (format == "fp8_e5m2") return cuda::KvDtype::kE5M2;
  throw InvalidArgument("kv_format must be '', 'fp8_e4m3' or 'fp8_e5m2', not '" + format + "'");
}

// [num_pages, 1, page_size, 576] of q's dtype, or uint8 with a kv_format.
cuda::KvPool latent_pool(const TensorView& cache, const TensorView& q, const std::string& format,
                         float scale) {
  cuda::KvPool pool;
  pool.dtype = parse_format(format);
  const DType want = pool.dtype == cuda::KvDtype::kSame ? q.dtype : DType::kU8;
  expect(cache.ndim == 4 && cache.dim(1) == 1 && cache.dim(3) == cuda::kLatentDim &&
             cache.dtype == want && cache.is_contiguous() && is_aligned16(cache),
         "cache must be contiguous [num_pages, 1, page_size, 576] of q's dtype, or uint8 with a "
         "kv_format");
  expect(std::has_single_bit(static_cast<uint64_t>(cache.dim(2))),
         "page_size must be a power of two");
  pool.k = cache.data;
  pool.k_scale = scale;
  pool.v_scale = scale;
  pool.num_pages = static_cast<int>(cache.dim(0));
  pool.num_kv_heads = 1;
  pool.log2_page_size = std::countr_zero(static_cast<uint64_t>(cache.dim(2)));
  pool.head_dim = cuda::kLatentDim;
  pool.head_dim_v = cuda::kLatentValue;
  return pool;
}

void expect_queries(const TensorView& q, const TensorView& out, const TensorView& page_table) {
  expect(q.dtype == DType::kBF16 || q.dtype == DType::kF16, "q must be bf16 or fp16");
  expect(q.ndim == 3 && q.dim(2) == cuda::kLatentDim && q.is_contiguous() && is_aligned16(q),
         "q must be contiguous [T, num_heads, 576]");
  expect(out.ndim == 3 && out.dtype == q.dtype && out.dim(0) == q.dim(0) &&
             out.dim(1) == q.dim(1) && out.dim(2) == cuda::kLatentValue && out.is_contiguous() &&
             is_aligned16(out),
         "out must be contiguous [T, num_heads, 512] of q's dtype");
  expect(page_table.dtype == DType::kI32 && page_table.ndim == 2 && page_table.step(1) == 1,
         "page_table must be int32 [rows, max_pages]");
}

// q: [T, num_heads, 576]. out: [T, num_heads, 512]. The rest as in decode_attention.
void latent_decode(const TensorView& q, const TensorView& cache, const TensorView& page_table,
                   const TensorView& message, const TensorView& workspace, const TensorView& out,
                   float scale, const std::string& kv_format, float kv_scale, int plan_offset,
                   bool pdl, uint64_t stream) {
  expect_queries(q, out, page_table);
  cuda::DecodeParams p;
  p.kv = latent_pool(cache, q, kv_format, kv_scale);
  p.num_q_heads = static_cast<int>(q.dim(1));
  expect(message.dtype == DType::kI32 && message.is_contiguous() && is_aligned16(message),
         "message must be int32, 16-byte aligned");
  const cuda::DecodeGrid grid =
      cuda::latent_decode_grid(p.num_q_heads, p.kv.dtype, cuda::num_sms());
  expect(workspace.is_contiguous() &&
             workspace.numel() * static_cast<int64_t>(dtype_bytes(workspace.dtype)) >=
                 static_cast<int64_t>(grid.workspace_bytes),
         "workspace is smaller than grid.workspace_bytes");
  p.q = q.data;
  p.out = out.data;
  p.q_stride = q.step(0);
  p.out_stride = out.step(0);
  p.dtype = as_dtype(q, "q");
  p.num_rows = static_cast<int>(q.dim(0));
  p.page_table = page_table.ptr<int32_t>();
  p.page_table_stride = page_table.step(0);
  p.scoring.scale = scale;
  p.message = message.ptr<int32_t>();
  p.plan_offset = plan_offset;
  p.workspace = workspace.data;
  p.pdl = pdl;
  check_cuda(cuda::latent_decode(p, as_stream(stream)), "latent_decode");
}

// The plan is cuda_extend_plan's for latent_blocks(num_heads).
void latent_extend(const TensorView& q, const TensorView& cache, const TensorView& page_table,
                   int num_seqs, const TensorView& plan, const TensorView& out, float scale,
                   const std::string& kv_format, float kv_scale, uint64_t stream) {
  expect_queries(q, out, page_table);
  cuda::ExtendParams p;
  p.dtype = as_dtype(q, "q");
  p.kv = latent_pool(cache, q, kv_format, kv_scale);
  p.num_q_heads = static_cast<int>(q.dim(1));
  const cuda::LatentBlocks blocks(p.num_q_heads);
  p.plan = int_data(
      plan, "plan",
      cuda::extend_plan_words(q.dim(0), num_seqs, 2 * blocks.heads * blocks.count, blocks.count));
  expect(is_aligned16(plan), "plan must be 16-byte aligned");
  p.q = q.data;
  p.q_token_stride = q.step(0);
  p.out = out.data;
  p.out_token_stride = out.step(0);
  p.page_table = page_table.ptr<int32_t>();
  p.page_table_stride = page_table.step(0);
  p.scoring.scale = scale;
  p.num_tokens = static_cast<int>(q.dim(0));
  p.num_seqs = num_seqs;
  check_cuda(cuda::latent_extend(p, as_stream(stream)), "latent_extend");
}

// (query heads, KV heads) for which the extend plan of so many latent heads is made.
std::pair<int, int> latent_blocks(int num_heads) {
  expect(num_heads > 0, "num_heads must be positive");
  const cuda::LatentBlocks blocks(num_heads);
  return {2 * blocks.heads * blocks.count, blocks.count};
}

}  // namespace

void bind_cuda_latent(py::module_& m) {
  m.attr("LATENT_DIMS") = py::make_tuple(cuda::kLatentValue, cuda::kLatentDim - cuda::kLatentValue);
  m.def("latent_blocks", &latent_blocks, "num_heads"_a);
  m.def("cuda_latent_decode", &latent_decode, "q"_a, "cache"_a, "page_table"_a, "message"_a,
        "workspace"_a, "out"_a, py::kw_only(), "scale"_a, "kv_format"_a = "", "kv_scale"_a = 1.0f,
        "plan_offset"_a = 0, "pdl"_a = false, "stream"_a,
        "Latent attention of the message's decode rows; tokens beyond the step's get zeros.");
  m.def("cuda_latent_extend", &latent_extend, "q"_a, "cache"_a, "page_table"_a, "num_seqs"_a,
        "plan"_a, "out"_a, py::kw_only(), "scale"_a, "kv_format"_a = "", "kv_scale"_a = 1.0f,
        "stream"_a, "Latent attention of the planned sequences; other rows stay as they are.");
}

}  // namespace srt::bind
