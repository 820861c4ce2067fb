// Allocates, maps and lets go of the ranks' inboxes.
#include "comm/peers.h"

#include <algorithm>

namespace srt::cuda {

cudaError_t peer_link(int device, int peer, PeerLink* link) {
  int access = 0;
  int atomics = 0;
  cudaError_t e = cudaDeviceCanAccessPeer(&access, device, peer);
  if (e == cudaSuccess && access != 0)
    e = cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, device, peer);
  *link = {access != 0, atomics != 0};
  return e;
}

cudaError_t Peers::open(int device, int rank, int size, int max_blocks) {
  device_ = device;
  view_.rank = rank;
  view_.size = size;
  view_.max_blocks = max_blocks;
  cudaError_t e = cudaSetDevice(device);
  void* memory = nullptr;
  if (e == cudaSuccess) e = cudaMalloc(&memory, peer_inbox_bytes(size));
  if (e != cudaSuccess) return e;
  inbox_ = static_cast<uint8_t*>(memory);
  e = cudaMemset(memory, 0, peer_inbox_bytes(size));
  return e == cudaSuccess ? cudaDeviceSynchronize() : e;
}

cudaError_t Peers::handle(cudaIpcMemHandle_t* out) const {
  return cudaIpcGetMemHandle(out, inbox_);
}

cudaError_t Peers::connect(const std::vector<cudaIpcMemHandle_t>& handles) {
  mapped_ = true;
  for (int i = 0; i < view_.size; ++i) {
    if (i == view_.rank) {
      view_.inboxes[i] = inbox_;
      continue;
    }
    void* memory = nullptr;
    const cudaError_t e = cudaIpcOpenMemHandle(&memory, handles[static_cast<size_t>(i)],
                                               cudaIpcMemLazyEnablePeerAccess);
    if (e != cudaSuccess) return e;
    view_.inboxes[i] = static_cast<uint8_t*>(memory);
  }
  connected_ = true;
  return cudaSuccess;
}

void Peers::connect_here(const std::vector<uint8_t*>& inboxes) {
  std::copy(inboxes.begin(), inboxes.end(), view_.inboxes);
  connected_ = true;
}

cudaError_t Peers::disconnect() {
  cudaError_t first = cudaSuccess;
  for (int i = 0; i < view_.size; ++i) {
    uint8_t* const inbox = view_.inboxes[i];
    view_.inboxes[i] = nullptr;
    if (!mapped_ || inbox == nullptr || inbox == inbox_) continue;
    const cudaError_t e = cudaIpcCloseMemHandle(inbox);
    if (first == cudaSuccess) first = e;
  }
  connected_ = mapped_ = false;
  return first;
}

cudaError_t Peers::close() {
  const cudaError_t first = disconnect();
  const cudaError_t e = inbox_ == nullptr ? cudaSuccess : cudaFree(inbox_);
  inbox_ = nullptr;
  return first == cudaSuccess ? e : first;
}

Peers::~Peers() {
  if (inbox_ != nullptr) (void)close();  // the process ends: there is nobody to tell
}

}  // namespace srt::cuda
