// Waiting: for the ring, and for values that other CTAs write. A wait that never ends fails.
#pragma once

#include "common/hopper.cuh"
#include "decode_step/layout.cuh"

namespace srt::cuda::decode_step {

// A poll takes some hundred nanoseconds: many seconds, then the launch fails instead of hanging.
constexpr uint32_t kMaxPolls = 1u << 26;

// Ends the launch with an error, as a store to address 0 does. __trap() would, too, but ptxas then
// keeps to the registers that the kernel was launched with.
__device__ __forceinline__ void give_up() {
  asm volatile("st.global.u32 [%0], %1;" ::"l"(0ull), "r"(0u) : "memory");
}

__device__ __forceinline__ bool try_wait(uint32_t bar, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(bar), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ __forceinline__ void wait(uint32_t bar, uint32_t parity) {
  for (uint32_t polls = 0; !try_wait(bar, parity);)
    if (++polls == kMaxPolls) give_up();
}

__device__ __forceinline__ void consumer_barrier() { hopper::named_barrier(1, kConsumers); }

// ---- Values that other CTAs write while this one waits for them. They lie in memory that was
// emptied before; a value is never equal to an empty place, for what rounds to NaN is 0x7fff.

constexpr uint32_t kEmpty = 0xffffffffu;  // two bf16 places, or one of float

__device__ __forceinline__ uint4 load_fresh(const void* p) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
__device__ __forceinline__ uint32_t load_fresh_4(const void* p) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ uint16_t load_fresh_2(const void* p) {
  uint16_t v;
  asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
  return v;
}

__device__ __forceinline__ void publish(void* p, uint4 v) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}
__device__ __forceinline__ void publish(void* p, uint2 v) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(v.x), "r"(v.y)
               : "memory");
}
__device__ __forceinline__ void publish(void* p, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void publish(void* p, bf16 v) {
  asm volatile("st.relaxed.gpu.global.u16 [%0], %1;" ::"l"(p), "h"(__bfloat16_as_ushort(v))
               : "memory");
}

// Whether none of eight bf16 places is empty.
__device__ __forceinline__ bool is_written(const uint4& v) {
  const uint32_t most = __vmaxu2(__vmaxu2(v.x, v.y), __vmaxu2(v.z, v.w));
  return most < 0xffff0000u && (most & 0xffffu) != 0xffffu;
}

// Counts the polls of a wait.
struct Patience {
  uint32_t polls = 0;
  __device__ __forceinline__ void lose() {
    if (++polls == kMaxPolls) give_up();
  }
};

}  // namespace srt::cuda::decode_step
