// The layers' elementwise kernels on CUDA: norms, gated activations, rotary, KV store.
#include <cuda_runtime.h>

#include "act/act.h"
#include "act/quantize.h"
#include "bind/bind.h"
#include "bind/cuda_args.h"
#include "bind/dlpack.h"
#include "bind/norm_args.h"
#include "kv/store_kv.h"
#include "norm/norm.h"
#include "rope/rotary.h"

namespace srt::bind {

namespace py = pybind11;
using namespace py::literals;

namespace {

// See as_norm_params.
void norm(const TensorView& x, const TensorView& weight, const OptionalView& bias,
          const OptionalView& residual, const TensorView& out, const OptionalView& scales,
          float eps, float weight_offset, bool centered, bool pdl, uint64_t stream,
          const OptionalView& given, float limit) {
  const cuda::NormParams p = as_norm_params(x, weight, bias, residual, out, scales, eps,
                                            weight_offset, centered, pdl, given, limit);
  check_cuda(cuda::norm(p, as_stream(stream)), "norm");
}

cuda::Activation as_activation(const std::string& name) {
  if (name == "silu") return cuda::Activation::kSilu;
  if (name == "gelu") return cuda::Activation::kGeluErf;
  if (name == "gelu_tanh") return cuda::Activation::kGeluTanh;
  throw InvalidArgument("activation must be silu, gelu or gelu_tanh, not " + name);
}

// x: [T, 2 * I], rows may be strided. out: [T, I] contiguous, or e4m3 as uint8 where `scales` or
// `given` says so.
void act_and_mul(const TensorView& x, const TensorView& out, const OptionalView& scales,
                 const std::string& activation, bool pdl, uint64_t stream,
                 const OptionalView& given, float limit) {
  expect(x.ndim == 2 && out.ndim == 2 && out.dim(0) == x.dim(0) && 2 * out.dim(1) == x.dim(1),
         "out must be [T, I] for x [T, 2 * I]");
  expect(out.dim(1) % 8 == 0, "I must be a multiple of 8");
  expect_rows(x, "x");
  cuda::ActAndMulParams p{};
  p.fp8 = as_fp8_rows(scales, given, limit, x.dim(0), out.dim(1));
  expect(!p.fp8.is_set() || out.dim(1) <= cuda::kMaxFp8Width, "in fp8, I must be at most 32768");
  expect_arg(out.dtype == (p.fp8.is_set() ? DType::kU8 : x.dtype) && out.is_contiguous(), "out",
             "must be contiguous with the dtype of x (uint8 in fp8)");
  p.x = x.data;
  p.out = out.data;
  p.x_stride = x.step(0);
  p.num_rows = static_cast<int>(x.dim(0));
  p.width = static_cast<int>(out.dim(1));
  p.activation = as_activation(activation);
  p.dtype = as_dtype(x, "x");
  p.pdl = pdl;
  check_cuda(cuda::act_and_mul(p, as_stream(stream)), "act_and_mul");
}

// x: [T, W], rows may be strided. out: e4m3 as uint8 [T, W] contiguous.
void quantize(const TensorView& x, const TensorView& out, const OptionalView& scales, bool pdl,
              uint64_t stream, const OptionalView& given, float limit) {
  expect(x.ndim == 2 && out.ndim == 2 && out.shape == x.shape,
         "out must have the shape of x [T, W]");
  expect(x.dim(1) % 8 == 0 && x.dim(1) <= cuda::kMaxQuantizeWidth,
         "W must be a multiple of 8, at most 32768");
  expect_rows(x, "x");
  expect_arg(out.dtype == DType::kU8 && out.is_contiguous() && out.device == Device::kCuda, "out",
             "must be contiguous uint8 on the device");
  expect(scales.has_value() || given.has_value(), "scales are either written or given");
  cuda::QuantizeParams p{};
  p.x = x.data;
  p.out = out.ptr<uint8_t>();
  p.fp8 = as_fp8_rows(scales, given, limit, x.dim(0), x.dim(1));
  p.x_stride = x.step(0);
  p.num_rows = static_cast<int>(x.dim(0));
  p.width = static_cast<int>(x.dim(1));
  p.dtype = as_dtype(x, "x");
  p.pdl = pdl;
  check_cuda(cuda::quantize(p, as_stream(stream)), "quantize");
}

// x: contiguous, any shape, replaced.
void softcap(const TensorView& x, float cap, bool pdl, uint64_t stream) {
  expect(x.is_contiguous() && is_aligned16(x), "x must be contiguous and 16-byte aligned");
  expect(x.device == Device::kCuda && cap > 0.0f, "x must be on the device, cap above 0");
  const cuda::SoftcapParams p{x.data, x.numel(), cap, as_dtype(x, "x"), pdl};
  check_cuda(cuda::softcap(p, as_stream(stream)), "softcap");
}

// A [T, H, D] view of dtype x.
cuda::HeadsView as_heads(const TensorView& t, const char* name, const TensorView& x) {
  expect_arg(t.ndim == 3 && t.dtype == x.dtype && t.dim(0) == x.dim(0), name,
             "must be [T, H, D] with T and the dtype of q");
  expect_arg(t.dim(2) % 8 == 0, name, "must have a head_dim that is a multiple of 8");
  expect_rows(t, name);
  return {t.data, t.step(0), t.step(1)};
}

// A pool tensor [num_pages, H, page_size, D] that takes `x` [T, H, D].
void* pool_data(const TensorView& cache, const char* name, const TensorView& x,
                cuda::KvFormat format) {
  const DType dtype = format == cuda::KvFormat::kSame ? x.dtype : DType::kU8;
  expect_arg(cache.device == Device::kCuda && cache.dtype == dtype && cache.is_contiguous(), name,
             "must be contiguous on the device, in the model's dtype (uint8 for fp8)");
  expect_arg(cache.ndim == 4 && cache.dim(1) == x.dim(1) && cache.dim(3) == x.dim(2), name,
             "must be [num_pages, H, page_size, D] with the heads of k (v)");
  return cache.data;
}

struct KvTarget {  // where k and v go; all or nothing
  const OptionalView& v;
  const OptionalView& slots;
  const OptionalView& k_cache;
  const OptionalView& v_cache;
};

void set_target(cuda::RotaryParams& p, const TensorView& k, const KvTarget& to) {
  const bool stores = to.k_cache.has_value();
  expect(to.v.has_value() == stores && to.slots.has_value() == stores &&
             to.v_cache.has_value() == stores,
         "v, slots, k_cache and v_cache come together");
  if (!stores) return;
  p.v = as_heads(*to.v, "v", k);
  expect(to.v->dim(1) == k.dim(1), "v must have as many heads as k");
  p.slots = int_data(*to.slots, "slots", k.dim(0));
  p.k_cache = pool_data(*to.k_cache, "k_cache", k, p.kv_format);
  p.v_cache = pool_data(*to.v_cache, "v_cache", *to.v, p.kv_format);
  expect(to.k_cache->dim(2) == to.v_cache->dim(2), "k_cache and v_cache must have one page size");
  p.page_size = static_cast<int>(to.k_cache->dim(2));
  p.v_head_dim = static_cast<int>(to.v->dim(2));
}

// q, k, v: [T, H, D] views. positions, slots: int32 [T]. cos_sin: float32 [max_positions, R].
// k_cache, v_cache: [num_pages, Hk, page_size, D]; without them q and k are rotated in place.
// q_norm, k_norm: [D], RMSNorm weights of the heads.
void rotary(const TensorView& q, const TensorView& k, const OptionalView& v,
            const TensorView& positions, const TensorView& cos_sin, const OptionalView& slots,
            const OptionalView& k_cache, const OptionalView& v_cache, bool interleaved,
            const std::string& kv_format, float k_scale, float v_scale, const OptionalView& q_norm,
            const OptionalView& k_norm, float norm_eps, float norm_offset, bool pdl,
            uint64_t stream) {
  cuda::RotaryParams p{};
  p.q = as_heads(q, "q", q);
  p.k = as_heads(k, "k", q);
  const int64_t dim = q.dim(2);
  expect(k.dim(2) == dim && dim <= cuda::kMaxRotaryHeadDim,
         "q and k must have one head_dim, at most 256");
  expect(cos_sin.ndim == 2 && cos_sin.dim(1) <= dim && cos_sin.dim(1) % 2 == 0,
         "cos_sin must be [max_positions, R], R even and at most head_dim");
  p.positions = int_data(positions, "positions", q.dim(0));
  p.cos_sin = float_data(cos_sin, "cos_sin", cos_sin.numel());
  p.q_norm = q_norm ? vector_data(*q_norm, "q_norm", q, dim) : nullptr;
  p.k_norm = k_norm ? vector_data(*k_norm, "k_norm", q, dim) : nullptr;
  p.num_tokens = static_cast<int>(q.dim(0));
  p.num_q_heads = static_cast<int>(q.dim(1));
  p.num_kv_heads = static_cast<int>(k.dim(1));
  p.head_dim = static_cast<int>(dim);
  p.rotary_dim = static_cast<int>(cos_sin.dim(1));
  p.interleaved = interleaved;
  p.kv_format = as_kv_format(kv_format);
  p.k_scale = k_scale;
  p.v_scale = v_scale;
  p.norm_eps = norm_eps;
  p.norm_offset = norm_offset;
  p.dtype = as_dtype(q, "q");
  p.pdl = pdl;
  set_target(p, k, {v, slots, k_cache, v_cache});
  check_cuda(cuda::rotary(p, as_stream(stream)), "rotary");
}

// x: [T, H, D] view. slots: int32 [T]. cache: [num_pages, H, page_size, D].
void store_kv(const TensorView& x, const TensorView& slots, const TensorView& cache,
              const std::string& kv_format, float scale, bool pdl, uint64_t stream) {
  cuda::StoreKvParams p{};
  p.x = as_heads(x, "x", x);
  p.format = as_kv_format(kv_format);
  p.slots = int_data(slots, "slots", x.dim(0));
  p.cache = pool_data(cache, "cache", x, p.format);
  p.num_tokens = static_cast<int>(x.dim(0));
  p.num_heads = static_cast<int>(x.dim(1));
  p.head_dim = static_cast<int>(x.dim(2));
  p.page_size = static_cast<int>(cache.dim(2));
  p.scale = scale;
  p.dtype = as_dtype(x, "x");
  p.pdl = pdl;
  check_cuda(cuda::store_kv(p, as_stream(stream)), "store_kv");
}

}  // namespace

void bind_cuda_fused(py::module_& m) {
  m.def("cuda_norm", &norm, "x"_a, "weight"_a, "bias"_a, "residual"_a, "out"_a, "scales"_a, "eps"_a,
        "weight_offset"_a, "centered"_a, "pdl"_a, "stream"_a, "given"_a = py::none(),
        "limit"_a = 0.0f);
  m.def("cuda_act_and_mul", &act_and_mul, "x"_a, "out"_a, "scales"_a, "activation"_a, "pdl"_a,
        "stream"_a, "given"_a = py::none(), "limit"_a = 0.0f);
  m.def("cuda_quantize", &quantize, "x"_a, "out"_a, "scales"_a, "pdl"_a, "stream"_a,
        "given"_a = py::none(), "limit"_a = 0.0f,
        "x to e4m3: scales [T] or, of groups of 128, [T, W / 128] are written, or one is given.");
  m.def("cuda_softcap", &softcap, "x"_a, "cap"_a, "pdl"_a, "stream"_a);
  m.def("cuda_rotary", &rotary, "q"_a, "k"_a, "v"_a, "positions"_a, "cos_sin"_a, "slots"_a,
        "k_cache"_a, "v_cache"_a, "interleaved"_a, "kv_format"_a, "k_scale"_a, "v_scale"_a,
        "q_norm"_a, "k_norm"_a, "norm_eps"_a, "norm_offset"_a, "pdl"_a, "stream"_a);
  m.def("cuda_store_kv", &store_kv, "x"_a, "slots"_a, "cache"_a, "kv_format"_a, "scale"_a, "pdl"_a,
        "stream"_a);
}

}  // namespace srt::bind
