// Memory in which the ranks of one host leave each other messages, mapped over NVLink.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace srt::cuda {

constexpr int kMaxPeers = 8;
constexpr int kPeerSlots = 128;        // blocks of a launch at most
constexpr int kPeerVectors = 1024;     // vectors of a slot: what a block sends to one rank at once
constexpr int kPeerVectorBytes = 16;   // of x; each travels as two messages
constexpr int kPeerMessageBytes = 16;  // two words of x, and the round's number behind each
constexpr size_t kPeerHeaderBytes = 4096;

// What a kernel needs to know of its peers. An inbox is a header, of which a rank reads and writes
// its own only: uint32 [kPeerSlots], how many rounds a slot has seen; and messages
// [2 (odd and even rounds)][rank that sent][kPeerSlots][2 (halves)][kPeerVectors].
struct PeerView {
  uint8_t* inboxes[kMaxPeers];  // by rank, this one's included
  int rank;
  int size;        // 2, 4 or 8
  int max_blocks;  // of a launch: blocks wait for those of the other ranks, so all must run
};

constexpr size_t peer_inbox_bytes(int size) {
  return kPeerHeaderBytes +
         size_t{2} * size * kPeerSlots * 2 * kPeerVectors * size_t{kPeerMessageBytes};
}

// How two devices of this process's are joined.
struct PeerLink {
  bool access;   // one may read and write the other's memory
  bool atomics;  // with atomics, as over NVLink and not over PCIe
};
[[nodiscard]] cudaError_t peer_link(int device, int peer, PeerLink* link);

// Owns a rank's inbox, and maps those of its peers. Every method is to be called on all ranks, with
// a barrier of theirs between one and the next, and no kernel may be under way that uses them.
class Peers {
 public:
  // Allocates the inbox on `device`, zeroed. Launches have at most `max_blocks` blocks.
  [[nodiscard]] cudaError_t open(int device, int rank, int size, int max_blocks);
  // What another process maps the inbox by.
  [[nodiscard]] cudaError_t handle(cudaIpcMemHandle_t* out) const;
  // Maps the peers' inboxes; `handles` by rank, the own one ignored.
  [[nodiscard]] cudaError_t connect(const std::vector<cudaIpcMemHandle_t>& handles);
  // The same for ranks that are streams of one process.
  void connect_here(const std::vector<uint8_t*>& inboxes);
  [[nodiscard]] cudaError_t disconnect();
  [[nodiscard]] cudaError_t close();

  Peers() = default;
  ~Peers();
  Peers(const Peers&) = delete;
  Peers& operator=(const Peers&) = delete;

  const PeerView& view() const { return view_; }
  uint8_t* inbox() const { return inbox_; }
  bool is_connected() const { return connected_; }

 private:
  PeerView view_{};
  uint8_t* inbox_ = nullptr;
  int device_ = 0;
  bool connected_ = false;
  bool mapped_ = false;  // by handles, which have to be unmapped
};

}  // namespace srt::cuda
