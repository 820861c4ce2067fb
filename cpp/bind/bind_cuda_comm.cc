// Sums over the ranks of a host, on CUDA.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "bind/bind.h"
#include "bind/cuda_args.h"
#include "bind/dlpack.h"
#include "bind/norm_args.h"
#include "comm/all_reduce.h"
#include "comm/peers.h"

namespace srt::bind {

namespace py = pybind11;
using namespace py::literals;

namespace {

std::unique_ptr<cuda::Peers> open_peers(int device, int rank, int size, int max_blocks) {
  expect(size == 2 || size == 4 || size == 8, "size must be 2, 4 or 8");
  expect(rank >= 0 && rank < size, "rank must be below size");
  expect(device >= 0, "device must not be negative");
  expect(max_blocks >= 0 && max_blocks <= cuda::kPeerSlots, "max_blocks must be at most 128");
  const int most = std::min(cuda::kPeerSlots, cuda::num_sms());
  auto peers = std::make_unique<cuda::Peers>();
  check_cuda(peers->open(device, rank, size, max_blocks == 0 ? most : max_blocks),
             "allocating an inbox");
  return peers;
}

py::bytes peers_handle(const cuda::Peers& peers) {
  expect(peers.inbox() != nullptr, "the peers are closed");
  cudaIpcMemHandle_t handle;
  check_cuda(peers.handle(&handle), "cudaIpcGetMemHandle");
  return {reinterpret_cast<const char*>(&handle), sizeof(handle)};
}

// handles: of every rank, in order, as peers_handle gives them.
void connect_peers(cuda::Peers& peers, const std::vector<std::string>& handles) {
  expect(peers.inbox() != nullptr && !peers.is_connected(), "the peers are closed or connected");
  expect(handles.size() == static_cast<size_t>(peers.view().size), "handles must be one a rank");
  std::vector<cudaIpcMemHandle_t> by_rank(handles.size());
  for (size_t i = 0; i < handles.size(); ++i) {
    expect(handles[i].size() == sizeof(by_rank[i]), "a handle must have 64 bytes");
    std::memcpy(&by_rank[i], handles[i].data(), sizeof(by_rank[i]));
  }
  const py::gil_scoped_release release;
  check_cuda(peers.connect(by_rank), "cudaIpcOpenMemHandle");
}

// inboxes: device addresses of all ranks, which live in this process.
void connect_peers_here(cuda::Peers& peers, const std::vector<uint64_t>& inboxes) {
  expect(peers.inbox() != nullptr && !peers.is_connected(), "the peers are closed or connected");
  expect(inboxes.size() == static_cast<size_t>(peers.view().size), "inboxes must be one a rank");
  std::vector<uint8_t*> by_rank;
  for (const uint64_t inbox : inboxes)
    by_rank.push_back(reinterpret_cast<uint8_t*>(inbox));  // NOLINT(performance-no-int-to-ptr)
  peers.connect_here(by_rank);
}

void expect_half(const TensorView& x) {
  expect_arg(x.dtype == DType::kF16 || x.dtype == DType::kBF16, "x", "must be float16 or bfloat16");
}

// x, out: contiguous, of equal shape; out may be x.
void all_reduce(const cuda::Peers& peers, const TensorView& x, const TensorView& out,
                bool two_shots, bool pdl, uint64_t stream) {
  expect(peers.is_connected(), "the peers are not connected");
  expect_half(x);
  expect_arg(x.device == Device::kCuda && x.is_contiguous() && is_aligned16(x), "x",
             "must be contiguous on the device, 16-byte aligned");
  expect_arg(x.numel() % 8 == 0, "x", "must have a multiple of 8 elements");
  cuda::AllReduceParams p{};
  p.peers = peers.view();
  p.x = x.data;
  p.out = vector_data(out, "out", x, x.numel());
  p.count = x.numel();
  p.dtype = as_dtype(x, "x");
  p.two_shots = two_shots;
  p.pdl = pdl;
  check_cuda(cuda::all_reduce(p, as_stream(stream)), "all_reduce");
}

// x: 16-bit values [rows, width] contiguous. out: [rows, size * width] contiguous.
void all_gather(const cuda::Peers& peers, const TensorView& x, const TensorView& out, bool pdl,
                uint64_t stream) {
  expect(peers.is_connected(), "the peers are not connected");
  expect_half(x);
  expect_arg(x.device == Device::kCuda && x.ndim == 2 && x.is_contiguous() && is_aligned16(x), "x",
             "must be [rows, width], contiguous on the device, 16-byte aligned");
  expect_arg(x.dim(1) % 8 == 0 && x.numel() <= INT32_MAX / 2, "x",
             "must be a multiple of 8 wide, and have less than 2^30 elements");
  expect_arg(out.ndim == 2 && out.dim(0) == x.dim(0), "out", "must have as many rows as x");
  cuda::AllGatherParams p{};
  p.peers = peers.view();
  p.x = x.data;
  p.out = vector_data(out, "out", x, x.numel() * p.peers.size);
  p.num_rows = static_cast<int>(x.dim(0));
  p.width = static_cast<int>(x.dim(1));
  p.pdl = pdl;
  check_cuda(cuda::all_gather(p, as_stream(stream)), "all_gather");
}

// `norm` of x summed over the ranks; arguments as its.
void all_reduce_norm(const cuda::Peers& peers, const TensorView& x, const TensorView& weight,
                     const OptionalView& bias, const OptionalView& residual, const TensorView& out,
                     const OptionalView& scales, float eps, float weight_offset, bool centered,
                     bool pdl, uint64_t stream, const OptionalView& given, float limit,
                     bool two_shots) {
  expect(peers.is_connected(), "the peers are not connected");
  expect_half(x);
  cuda::AllReduceNormParams p{};
  p.peers = peers.view();
  p.norm = as_norm_params(x, weight, bias, residual, out, scales, eps, weight_offset, centered, pdl,
                          given, limit);
  expect(p.norm.hidden <= cuda::kMaxAllReduceHidden, "rows of x must have at most 8192 values");
  p.two_shots = two_shots;
  check_cuda(cuda::all_reduce_norm(p, as_stream(stream)), "all_reduce_norm");
}

}  // namespace

void bind_cuda_comm(py::module_& m) {
  m.attr("MAX_ALL_REDUCE_HIDDEN") = cuda::kMaxAllReduceHidden;
  m.def(
      "peer_link",
      [](int device, int peer) {
        cuda::PeerLink link{};
        check_cuda(cuda::peer_link(device, peer, &link), "cudaDeviceCanAccessPeer");
        return std::pair(link.access, link.atomics);
      },
      "device"_a, "peer"_a);
  py::class_<cuda::Peers>(m, "Peers")
      .def(py::init(&open_peers), "device"_a, "rank"_a, "size"_a, "max_blocks"_a = 0)
      .def_property_readonly(
          "inbox", [](const cuda::Peers& p) { return reinterpret_cast<uint64_t>(p.inbox()); })
      .def("handle", &peers_handle)
      .def("connect", &connect_peers, "handles"_a)
      .def("connect_here", &connect_peers_here, "inboxes"_a)
      .def("disconnect", [](cuda::Peers& p) { check_cuda(p.disconnect(), "disconnecting peers"); })
      .def("close", [](cuda::Peers& p) { check_cuda(p.close(), "freeing an inbox"); })
      .def("all_reduce", &all_reduce, "x"_a, "out"_a, "two_shots"_a, "pdl"_a, "stream"_a)
      .def("all_gather", &all_gather, "x"_a, "out"_a, "pdl"_a, "stream"_a)
      .def("all_reduce_norm", &all_reduce_norm, "x"_a, "weight"_a, "bias"_a, "residual"_a, "out"_a,
           "scales"_a, "eps"_a, "weight_offset"_a, "centered"_a, "pdl"_a, "stream"_a,
           "given"_a = py::none(), "limit"_a = 0.0f, "two_shots"_a = false);
}

}  // namespace srt::bind
