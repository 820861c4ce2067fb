"""Tensor parallelism: a rank, its peers and their collectives. Passed down, never global."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from srt.errors import ConfigError
from srt.ops.peers import PeerGroup

TEXT_BYTES = 1024  # of `exchange`


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """Rank `rank` of `size` that share every layer. With size 1 every collective is the identity.

    group: gloo for CPU tensors, NCCL for CUDA tensors; None iff size is 1.
    host_group: gloo, for host-side values; None iff size is 1.
    peers: sums and gathers small messages in NCCL's place, see `peering`; None: nobody does.
    summed_by: who sums, for the start-up table; empty where it goes without saying.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    host_group: dist.ProcessGroup | None = None
    peers: PeerGroup | None = None
    summed_by: str = ""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sums `x` over the ranks, in place."""
        if self.peers is not None and self.peers.takes(x):
            return self.peers.all_reduce(x)
        if self.size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """[..., n] on each rank → [..., size * n], in rank order."""
        if self.size == 1:
            return x
        if self.peers is not None and self.peers.takes_parts(x):
            return self.peers.all_gather(x)
        shape = (self.size * x.shape[0], *x.shape[1:])
        stacked = torch.empty(shape, dtype=x.dtype, device=x.device)
        dist.all_gather_into_tensor(stacked, x.contiguous(), group=self.group)
        parts = stacked.view(self.size, *x.shape)
        return parts.movedim(0, -2).reshape(*x.shape[:-1], self.size * x.shape[-1])

    def broadcast(self, x: Tensor, src: int = 0) -> Tensor:
        """Overwrites `x` with rank `src`'s, in place."""
        if self.size > 1:
            dist.broadcast(x, group=self.group, group_src=src)
        return x

    def barrier(self) -> None:
        """Returns once every rank has come here (a host-side wait)."""
        if self.size > 1:
            dist.barrier(group=self.host_group)

    def exchange(self, text: str) -> list[str]:
        """Every rank's ASCII text, in rank order, cut to 1 KiB (a host-side wait)."""
        own = torch.zeros(TEXT_BYTES, dtype=torch.uint8)
        data = text.encode("ascii", "replace")[:TEXT_BYTES]
        own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else own[:0]
        texts = [torch.empty_like(own) for _ in range(self.size)]
        if self.size > 1:
            dist.all_gather(texts, own, group=self.host_group)
        else:
            texts = [own]
        return [bytes(t.tolist()).rstrip(b"\0").decode("ascii") for t in texts]

    def close(self) -> None:
        """Leaves the groups; the process may then join others. The device must be idle."""
        if self.peers is not None:
            self.barrier()  # every rank's device is idle: nobody writes into an inbox
            self.peers.disconnect()
            self.barrier()  # no rank has an inbox mapped that its owner frees
            self.peers.close()
        if self.size > 1:
            dist.destroy_process_group()


def local_ranks(tp_size: int, nnodes: int, node_rank: int) -> range:
    """The ranks that run on one node. Raises ConfigError where the flags do not fit together."""
    if not 0 <= node_rank < nnodes:
        raise ConfigError(
            f"--node-rank {node_rank} must be from 0 to {nnodes - 1} (--nnodes {nnodes})"
        )
    if tp_size % nnodes:
        raise ConfigError(f"--tp-size {tp_size} must be a multiple of --nnodes {nnodes}")
    per_node = tp_size // nnodes
    return range(node_rank * per_node, (node_rank + 1) * per_node)


def init_tensor_parallel(
    rank: int, size: int, init_addr: str, device: torch.device, *, timeout_s: float = 300.0
) -> TensorParallel:
    """Joins the group. Every rank calls this with the same `size` and `init_addr`.

    GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose the network interfaces, as torch reads them.

    Args:
        init_addr: `host:port` where rank 0 listens (`--nccl-init-addr`, `--dist-init-addr`).
        device: where the tensors of the collectives live.

    Raises:
        ConfigError: the address is malformed, or the ranks do not meet within `timeout_s`.
    """
    if size == 1:
        return TensorParallel()
    host, _, port = init_addr.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--nccl-init-addr {init_addr!r} must be host:port")
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            backend,
            init_method=f"tcp://{host}:{port}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as e:
        interface = os.environ.get("GLOO_SOCKET_IFNAME", "unset")
        raise ConfigError(
            f"rank {rank} of {size} could not meet its peers at {host}:{port} "
            f"(GLOO_SOCKET_IFNAME {interface}): {e}"
        ) from e
    group = dist.group.WORLD
    host_group = group if backend == "gloo" else dist.new_group(backend="gloo")
    return TensorParallel(rank, size, group, host_group)
