// How ranks sum a vector: every thread sends its own to the peers and waits for theirs.
//
// A message of 16 bytes is two words of the vector, each with the number of the round behind it, in
// stores of 8 bytes that arrive whole: who finds the number finds the word, so nothing is flushed
// and no flag is waited for. Numbers are never reset (a place would have to lie unused for exactly
// 2^32 rounds of its slot to be mistaken). Rounds of a slot take two places in turn: who
// sends in round n + 2 has had an answer to round n + 1 from every rank, which all ranks give after
// they have read round n. That holds for launches of any sizes, since within one all threads of a
// block take part in all of the block's rounds, and launches of a stream do not overlap behind
// ptx::grid_wait().
#pragma once

#include "comm/peers.h"
#include "common/vec.cuh"

namespace srt::cuda::comm {

// A poll takes some hundred nanoseconds: minutes, then the launch fails instead of hanging. A rank
// that is late by less (it loads a kernel, its process was stopped) is waited for.
constexpr uint32_t kMaxPolls = 1u << 28;

struct alignas(16) Message {
  uint64_t first;
  uint64_t second;
};

__device__ __forceinline__ void store_message(void* to, const Message& m) {
  asm volatile("st.relaxed.sys.global.v2.b64 [%0], {%1, %2};" ::"l"(to), "l"(m.first), "l"(m.second)
               : "memory");
}

__device__ __forceinline__ Message load_message(const void* from) {
  Message m;
  asm volatile("ld.relaxed.sys.global.v2.b64 {%0, %1}, [%2];"
               : "=l"(m.first), "=l"(m.second)
               : "l"(from)
               : "memory");
  return m;
}

__device__ __forceinline__ uint64_t with_round(uint32_t word, uint32_t round) {
  return static_cast<uint64_t>(round) << 32 | word;
}

__device__ __forceinline__ bool is_of_round(const Message& m, uint32_t round) {
  return static_cast<uint32_t>(m.first >> 32) == round &&
         static_cast<uint32_t>(m.second >> 32) == round;
}

// A vector's messages in the inbox of rank `to`, from rank `from`; the halves lie kHalfBytes apart.
constexpr int kHalfBytes = kPeerVectors * kPeerMessageBytes;

__device__ __forceinline__ uint8_t* place(const PeerView& peers, int to, int from, uint32_t round,
                                          int slot, int vector) {
  const size_t row = ((round & 1u) * peers.size + from) * size_t{kPeerSlots} + slot;
  return peers.inboxes[to] + kPeerHeaderBytes + row * size_t{2 * kHalfBytes} +
         vector * kPeerMessageBytes;
}

__device__ __forceinline__ uint32_t* rounds_of(const PeerView& peers, int slot) {
  return reinterpret_cast<uint32_t*>(peers.inboxes[peers.rank]) + slot;
}

__device__ __forceinline__ void send(void* to, const uint4& x, uint32_t round) {
  store_message(to, {with_round(x.x, round), with_round(x.y, round)});
  store_message(static_cast<uint8_t*>(to) + kHalfBytes,
                {with_round(x.z, round), with_round(x.w, round)});
}

// Waits for the half at from[i] of every i that is not null.
template <int kCount>
__device__ __forceinline__ void receive(const uint8_t* const (&from)[kCount], uint32_t round,
                                        Message (&got)[kCount]) {
  for (uint32_t polls = 0; polls < kMaxPolls; ++polls) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (from[i] != nullptr) got[i] = load_message(from[i]);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (from[i] != nullptr) all = all && is_of_round(got[i], round);
    if (all) return;
  }
  asm volatile("st.global.u32 [%0], %1;" ::"l"(0ull), "r"(0u) : "memory");  // ends in an error
}

template <typename T>
__device__ __forceinline__ void add_pair(float (&sum)[2], uint32_t word) {
  const Vec<T, 2>& x = reinterpret_cast<const Vec<T, 2>&>(word);
  sum[0] += to_float(x[0]);
  sum[1] += to_float(x[1]);
}

template <typename T>
__device__ __forceinline__ uint32_t as_pair(const float (&sum)[2]) {
  Vec<T, 2> y;
  y[0] = from_float<T>(sum[0]);
  y[1] = from_float<T>(sum[1]);
  return reinterpret_cast<const uint32_t&>(y);
}

// Waits for the vector of every rank but `rank`, and gives each of its halves, with `rank`'s place
// undefined, to f(half, messages by rank). `at(r)` is where rank r's first half will be.
template <int kRanks, typename At, typename F>
__device__ __forceinline__ void receive_all(int rank, uint32_t round, At&& at, F&& f) {
  constexpr int kHalves = kRanks <= 4 ? 2 : 1;  // that are waited for at once: registers
#pragma unroll
  for (int begin = 0; begin < 2; begin += kHalves) {
    const uint8_t* from[kHalves * kRanks];
#pragma unroll
    for (int i = 0; i < kHalves * kRanks; ++i)
      from[i] = i % kRanks == rank ? nullptr : at(i % kRanks) + (begin + i / kRanks) * kHalfBytes;
    Message got[kHalves * kRanks];
    receive(from, round, got);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) f(begin + half, &got[half * kRanks]);
  }
}

// The sum over ranks of `own`, added up in their order in float32 and rounded to T.
template <typename T, int kRanks, typename At>
__device__ __forceinline__ uint4 gather_sum(const uint4& own, int rank, uint32_t round, At&& at) {
  const uint32_t mine[4] = {own.x, own.y, own.z, own.w};
  uint32_t out[4];
  receive_all<kRanks>(rank, round, at, [&](int half, const Message* got) {
    float sums[2][2] = {};
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      const bool is_own = r == rank;
      add_pair<T>(sums[0], is_own ? mine[2 * half] : static_cast<uint32_t>(got[r].first));
      add_pair<T>(sums[1], is_own ? mine[2 * half + 1] : static_cast<uint32_t>(got[r].second));
    }
    out[2 * half] = as_pair<T>(sums[0]);
    out[2 * half + 1] = as_pair<T>(sums[1]);
  });
  return {out[0], out[1], out[2], out[3]};
}

// One round for one vector. All threads of a block call this equally often, with the same round.
// Two shots: a warp's vectors are summed by one rank, which sends the sum to the others. That is
// less to send where ranks are many, and one more way over the link.
template <typename T, int kRanks, bool kTwoShots>
__device__ __forceinline__ uint4 sum_over_ranks(const PeerView& peers, const uint4& own,
                                                uint32_t round, int vector) {
  const int slot = static_cast<int>(blockIdx.x);
  const int rank = peers.rank;
  const auto inbox = [&](int r) { return place(peers, rank, r, round, slot, vector); };
  if (!kTwoShots) {
#pragma unroll
    for (int r = 0; r < kRanks; ++r)
      if (r != rank) send(place(peers, r, rank, round, slot, vector), own, round);
    return gather_sum<T, kRanks>(own, rank, round, inbox);
  }
  const int owner = vector / 32 % kRanks;
  if (owner != rank) {
    send(place(peers, owner, rank, round, slot, vector), own, round);
    const uint8_t* const from[2] = {inbox(owner), inbox(owner) + kHalfBytes};
    Message got[2];
    receive(from, round, got);
    return {static_cast<uint32_t>(got[0].first), static_cast<uint32_t>(got[0].second),
            static_cast<uint32_t>(got[1].first), static_cast<uint32_t>(got[1].second)};
  }
  const uint4 sum = gather_sum<T, kRanks>(own, rank, round, inbox);
#pragma unroll
  for (int r = 0; r < kRanks; ++r)
    if (r != rank) send(place(peers, r, rank, round, slot, vector), sum, round);
  return sum;
}

}  // namespace srt::cuda::comm
