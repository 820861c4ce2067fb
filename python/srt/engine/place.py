"""Which rank a process is, and the addresses at which ranks meet."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from srt.config import Settings


@dataclass(frozen=True, slots=True)
class Place:
    """One rank's place.

    tp_rank: over all nodes.  endpoint: of the server's channel.  init_addr: host:port where the
    ranks of a copy meet (unused if there is one).
    """

    dp_rank: int
    tp_rank: int
    endpoint: str
    init_addr: str


def local_ranks(settings: Settings) -> range:
    """The tensor-parallel ranks that run on this node."""
    per_node = settings.tp_size // settings.nnodes
    return range(settings.node_rank * per_node, (settings.node_rank + 1) * per_node)


def device_index(settings: Settings, place: Place) -> int:
    """Which of the node's GPUs the rank takes: copies side by side, ranks of a copy in order."""
    ranks = local_ranks(settings)
    return place.dp_rank * len(ranks) + place.tp_rank - ranks.start


def first_place(settings: Settings, dp_rank: int, endpoint: str) -> Place:
    """The place of the process that the server starts for a copy: the node's first rank.

    Without `dist_init_addr` ranks meet at a free port of the loopback interface. With it, copy d
    meets at the port + d * tp_size, and rank r of it is fed over the port + d * tp_size + r if
    there are several nodes.
    """
    if settings.dist_init_addr is None:
        init_addr = f"127.0.0.1:{_free_port()}" if settings.tp_size > 1 else ""
    else:
        host, _, port = settings.dist_init_addr.rpartition(":")
        init_addr = f"{host}:{int(port) + dp_rank * settings.tp_size}"
    return Place(dp_rank, local_ranks(settings).start, endpoint, init_addr)


def follower_address(settings: Settings, place: Place, tp_rank: int) -> str:
    """Where rank 0 feeds rank `tp_rank`."""
    if settings.nnodes == 1:
        return f"{place.endpoint}.rank{tp_rank}"
    host, _, port = place.init_addr.rpartition(":")
    return f"tcp://{socket.gethostbyname(host)}:{int(port) + tp_rank}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
