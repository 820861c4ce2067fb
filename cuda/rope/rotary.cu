// Rotary embedding of q and k, with the per-head norm before and the store into the KV pool after.
//
// Shapes    see RotaryParams; heads 16-byte aligned.
// Parallel  8 to 32 lanes a (token, head), 8 values a lane; the heads of q, k and v are one list.
// Bound     HBM: every value of q, k, v is read once (a lane finds its partner's values in L1).
// Numerics  float32 inside; the norm rounds as NormParams says; fp8 saturates, NaN stays NaN.
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "kv/pool.cuh"
#include "rope/rotary.h"

namespace srt::cuda {
namespace {

constexpr int kLane = 8;
constexpr int kThreads = 128;

enum class Role : uint8_t { kQ, kK, kV };

// What one group of lanes works on.
struct Head {
  Role role;
  int token;
  int head;  // among its role's heads
};

__device__ __forceinline__ Head find_head(const RotaryParams& p, int item) {
  const int num_v = p.v_cache != nullptr ? p.num_kv_heads : 0;
  const int per_token = p.num_q_heads + p.num_kv_heads + num_v;
  const int token = item / per_token;
  const int head = item - token * per_token;
  if (head < p.num_q_heads) return {Role::kQ, token, head};
  if (head < p.num_q_heads + p.num_kv_heads) return {Role::kK, token, head - p.num_q_heads};
  return {Role::kV, token, head - p.num_q_heads - p.num_kv_heads};
}

__device__ __forceinline__ HeadsView view_of(const RotaryParams& p, Role role) {
  return role == Role::kQ ? p.q : role == Role::kK ? p.k : p.v;
}

// Whether 8 neighbours rotate with 8 neighbours, by 8 (interleaved: 4) neighbouring angles.
__device__ __forceinline__ bool is_wide(const RotaryParams& p) {
  return p.rotary_dim % (p.interleaved ? kLane : 2 * kLane) == 0;
}

// The value that rotates with value `at`: half a rotation away, or its neighbour.
__device__ __forceinline__ int partner_of(const RotaryParams& p, int at) {
  if (at >= p.rotary_dim) return at;
  if (p.interleaved) return at ^ 1;
  const int half = p.rotary_dim / 2;
  return at < half ? at + half : at - half;
}

// The partners of the values at [at, at + 8) of a head (or of a weight).
template <typename T>
__device__ __forceinline__ void load_partners(const RotaryParams& p, const T* head, int at,
                                              float (&out)[kLane]) {
  if (is_wide(p) && !p.interleaved) {
    load_floats(head + partner_of(p, at), out);
    return;
  }
#pragma unroll
  for (int j = 0; j < kLane; ++j) out[j] = to_float(head[partner_of(p, at + j)]);
}

// RMSNorm over the group's head; `x` and `partner` are scaled alike.
template <typename T, int kGroup>
__device__ __forceinline__ void normalize_head(const RotaryParams& p, const T* weight, int at,
                                               bool active, float (&x)[kLane],
                                               float (&partner)[kLane]) {
  float squares = 0.0f;
#pragma unroll
  for (int j = 0; j < kLane; ++j) squares += x[j] * x[j];
  squares = warp_sum<kGroup>(active ? squares : 0.0f);
  if (!active || weight == nullptr) return;
  const float scale = rsqrtf(squares / static_cast<float>(p.head_dim) + p.norm_eps);
  const bool round_first = p.norm_offset == 0.0f;
  const auto apply = [&](float value, float w) {
    const float y = value * scale;
    return rounded<T>((round_first ? rounded<T>(y) : y) * (w + p.norm_offset));
  };
  float w[kLane];
  load_floats(weight + at, w);
#pragma unroll
  for (int j = 0; j < kLane; ++j) x[j] = apply(x[j], w[j]);
  load_partners(p, weight, at, w);
#pragma unroll
  for (int j = 0; j < kLane; ++j) partner[j] = apply(partner[j], w[j]);
}

// The angle of value `at`, and whether it is the first of its pair.
__device__ __forceinline__ int angle_of(const RotaryParams& p, int at) {
  const int half = p.rotary_dim / 2;
  return p.interleaved ? at / 2 : at < half ? at : at - half;
}
__device__ __forceinline__ bool is_first(const RotaryParams& p, int at) {
  return p.interleaved ? at % 2 == 0 : at < p.rotary_dim / 2;
}

__device__ __forceinline__ void rotate(const RotaryParams& p, int position, int at,
                                       float (&x)[kLane], const float (&partner)[kLane]) {
  if (at >= p.rotary_dim) return;
  const float* const cosines = p.cos_sin + static_cast<int64_t>(position) * p.rotary_dim;
  const float* const sines = cosines + p.rotary_dim / 2;
  float c[kLane];
  float s[kLane];
  if (is_wide(p) && !p.interleaved) {
    load_floats(cosines + angle_of(p, at), c);
    load_floats(sines + angle_of(p, at), s);
  } else {
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      const bool rotates = at + j < p.rotary_dim;
      c[j] = rotates ? cosines[angle_of(p, at + j)] : 1.0f;
      s[j] = rotates ? sines[angle_of(p, at + j)] : 0.0f;
    }
  }
#pragma unroll
  for (int j = 0; j < kLane; ++j)
    x[j] = x[j] * c[j] + (is_first(p, at + j) ? -partner[j] : partner[j]) * s[j];
}

template <typename T>
__device__ __forceinline__ void store_cache(const RotaryParams& p, const Head& h, int at,
                                            float (&x)[kLane]) {
  const bool is_k = h.role == Role::kK;
  const int dim = is_k ? p.head_dim : p.v_head_dim;
  const int64_t offset = pool_offset(p.slots[h.token], h.head, p.num_kv_heads, p.page_size, dim);
  store_pool<T>(is_k ? p.k_cache : p.v_cache, offset + at, p.kv_format,
                is_k ? p.k_scale : p.v_scale, x);
}

template <typename T, int kGroup>
__global__ void __launch_bounds__(kThreads)
    rotary_kernel(const __grid_constant__ RotaryParams p, int num_items) {
  ptx::grid_launch();
  const int item = static_cast<int>(blockIdx.x * kThreads + threadIdx.x) / kGroup;
  const int at = static_cast<int>(threadIdx.x) % kGroup * kLane;
  const Head h = find_head(p, item < num_items ? item : 0);
  const int dim = h.role == Role::kV ? p.v_head_dim : p.head_dim;
  const bool active = item < num_items && at < dim;
  const bool rotates = active && h.role != Role::kV;
  const HeadsView view = view_of(p, h.role);
  T* const row =
      static_cast<T*>(view.data) + h.token * view.token_stride + h.head * view.head_stride;
  ptx::grid_wait();

  float x[kLane] = {};
  float partner[kLane] = {};
  if (active) load_floats(row + at, x);
  if (rotates) load_partners(p, row, at, partner);
  __syncwarp();  // every lane has its partner's values before one of them is overwritten
  if (p.q_norm != nullptr || p.k_norm != nullptr) {
    const void* const weight = h.role == Role::kQ ? p.q_norm : p.k_norm;
    normalize_head<T, kGroup>(p, static_cast<const T*>(weight), at, rotates, x, partner);
  }
  if (!active) return;
  if (rotates) rotate(p, p.positions[h.token], at, x, partner);
  const bool to_cache = h.role == Role::kV || (h.role == Role::kK && p.k_cache != nullptr);
  if (to_cache) {
    store_cache<T>(p, h, at, x);
  } else {
    store_floats(row + at, x);
  }
}

template <typename T, int kGroup>
cudaError_t launch_rotary(const RotaryParams& p, cudaStream_t stream) {
  const int num_v = p.v_cache != nullptr ? p.num_kv_heads : 0;
  const int num_items = p.num_tokens * (p.num_q_heads + p.num_kv_heads + num_v);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(div_up(num_items, kThreads / kGroup))),
                          .block = dim3(kThreads),
                          .pdl = p.pdl};
  return launch(rotary_kernel<T, kGroup>, shape, stream, p, num_items);
}

}  // namespace

cudaError_t rotary(const RotaryParams& p, cudaStream_t stream) {
  if (p.num_tokens == 0 || p.num_q_heads + p.num_kv_heads == 0) return cudaSuccess;
  const int widest = p.v_cache != nullptr && p.v_head_dim > p.head_dim ? p.v_head_dim : p.head_dim;
  if (widest % kLane != 0 || widest > kMaxRotaryHeadDim) return cudaErrorInvalidValue;
  SRT_DISPATCH_DTYPE(p.dtype, T, {
    if (widest <= 8 * kLane) return launch_rotary<T, 8>(p, stream);
    if (widest <= 16 * kLane) return launch_rotary<T, 16>(p, stream);
    return launch_rotary<T, 32>(p, stream);
  });
}

}  // namespace srt::cuda
