"""Whether the ranks of a model may sum by our own kernels (`ops.peers`), or NCCL does it all.

Every rank tells the others what it sees and all choose the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from srt.core import native
from srt.ops.peers import MAX_BYTES, PeerGroup
from srt.parallel import TensorParallel

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class RankDevice:
    """Where a rank is. host: equal for ranks of one host alone; uuid: the device's."""

    host: str
    uuid: str
    name: str
    num_sms: int


@dataclass(frozen=True, slots=True)
class Link:
    """How this rank's device reaches a peer's; None: it does not see the peer's device at all."""

    access: bool
    atomics: bool


def join_peers(tp: TensorParallel, device: torch.device, *, enabled: bool) -> TensorParallel:
    """`tp` with peers where they can sum, and with what the start-up table says of it.

    Every rank calls this with the same `enabled`. A rank that cannot makes all of them leave it.
    """
    if tp.size == 1 or device.type != "cuda":
        return tp
    if not enabled:
        return _by_nccl(tp, "--disable-custom-all-reduce")
    if tp.size not in MAX_BYTES:
        return _by_nccl(tp, f"{tp.size} ranks, not 2, 4 or 8")
    if not native.HAS_CUDA:
        return _by_nccl(tp, "built without CUDA")
    ranks = [RankDevice(**json.loads(text)) for text in tp.exchange(json.dumps(_own(device)))]
    reason = _first(tp, refusal(tp.rank, ranks, _links(tp.rank, ranks, device)))
    if reason:
        return _by_nccl(tp, reason)
    peers, failure = _connect(tp, device)
    reason = _first(tp, failure)
    if reason or peers is None:
        if peers is not None:
            peers.disconnect()
        tp.barrier()  # no rank has an inbox mapped that its owner frees
        if peers is not None:
            peers.close()
        return _by_nccl(tp, reason)
    reduce = PeerGroup(peers, tp.size)
    limit = reduce.max_bytes / MIB
    return replace(
        tp, peers=reduce, summed_by=f"peer-to-peer kernels up to {limit:g} MiB, NCCL beyond"
    )


def refusal(rank: int, ranks: Sequence[RankDevice], links: Sequence[Link | None]) -> str:
    """Why rank `rank` cannot sum with the others over its links; empty: it can.

    Args:
        ranks, links: by rank; the link to itself is not looked at.
    """
    own = ranks[rank]
    for peer, (other, link) in enumerate(zip(ranks, links, strict=True)):
        if peer == rank:
            continue
        between = f"ranks {min(rank, peer)} and {max(rank, peer)}"
        if other.host != own.host:
            return f"{between} are on two hosts"
        if other.uuid == own.uuid:
            return f"{between} share a device"
        if (other.name, other.num_sms) != (own.name, own.num_sms):
            return f"{between} have a {own.name} and a {other.name}"
        if link is None:
            return f"{between} do not see each other's device"
        if not link.access:
            return f"{between} have no peer access"
        if not link.atomics:
            return f"{between} have no NVLink"
    return ""


def _own(device: torch.device) -> dict[str, object]:
    properties = torch.cuda.get_device_properties(device)
    num_sms = properties.multi_processor_count
    host = BOOT_ID.read_text().strip()
    return asdict(RankDevice(host, str(properties.uuid), properties.name, num_sms))


def _links(rank: int, ranks: Sequence[RankDevice], device: torch.device) -> list[Link | None]:
    """To each rank's device, where this process sees it."""
    visible = {
        str(torch.cuda.get_device_properties(i).uuid): i for i in range(torch.cuda.device_count())
    }
    links: list[Link | None] = []
    for peer, other in enumerate(ranks):
        index = visible.get(other.uuid)
        if index is None or peer == rank or index == device.index:
            links.append(None)
        else:
            links.append(Link(*native.peer_link(device.index, index)))
    return links


def _connect(tp: TensorParallel, device: torch.device) -> tuple[native.Peers | None, str]:
    """The inboxes of all ranks, mapped; what failed, if anything. Ranks stay in step."""
    peers, failure, handle = None, "", b""
    try:
        peers = native.Peers(device.index, tp.rank, tp.size)
        handle = peers.handle()
    except native.CudaError as e:
        failure = str(e)
    handles = [bytes.fromhex(text) for text in tp.exchange(handle.hex())]
    if peers is not None and all(handles):
        try:
            peers.connect(handles)
        except native.CudaError as e:
            failure = str(e)
    return peers, failure


def _first(tp: TensorParallel, reason: str) -> str:
    """The first rank's reason that has one; the same on every rank."""
    return next(filter(None, tp.exchange(reason)), "")


def _by_nccl(tp: TensorParallel, reason: str) -> TensorParallel:
    return replace(tp, summed_by=f"NCCL ({reason})")
