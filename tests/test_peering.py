"""Who sums over ranks: our own kernels, or NCCL and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from srt import peering
from srt.core import native
from srt.ops.peers import MAX_BYTES, PeerGroup
from srt.parallel import TensorParallel
from srt.peering import Link, RankDevice, join_peers, refusal

H100 = RankDevice("host", "gpu-0", "NVIDIA H100", 132)
RANKS = [replace(H100, uuid=f"gpu-{i}") for i in range(4)]
NVLINK, PCIE, NONE = Link(True, True), Link(True, False), Link(False, False)
CUDA = torch.device("cuda", 0)


def test_ranks_of_one_host_over_nvlink_sum_by_themselves() -> None:
    for rank in range(4):
        links = [None if peer == rank else NVLINK for peer in range(4)]
        assert refusal(rank, RANKS, links) == ""


@pytest.mark.parametrize(
    ("other", "link", "reason"),
    [
        (replace(RANKS[2], host="elsewhere"), NVLINK, "ranks 1 and 2 are on two hosts"),
        (replace(RANKS[2], uuid="gpu-1"), NVLINK, "ranks 1 and 2 share a device"),
        (
            replace(RANKS[2], name="NVIDIA H200"),
            NVLINK,
            "ranks 1 and 2 have a NVIDIA H100 and a NVIDIA H200",
        ),
        (replace(RANKS[2], num_sms=78), NVLINK, "ranks 1 and 2 have a NVIDIA H100 and"),
        (RANKS[2], None, "ranks 1 and 2 do not see each other's device"),
        (RANKS[2], NONE, "ranks 1 and 2 have no peer access"),
        (RANKS[2], PCIE, "ranks 1 and 2 have no NVLink"),
    ],
)
def test_what_keeps_ranks_from_it(other: RankDevice, link: Link | None, reason: str) -> None:
    ranks = [RANKS[0], RANKS[1], other, RANKS[3]]
    assert refusal(1, ranks, [NVLINK, None, link, NVLINK]).startswith(reason)


def test_one_rank_and_ranks_on_the_cpu_have_nothing_to_choose() -> None:
    for tp, device in ((TensorParallel(), CUDA), (TensorParallel(0, 2), torch.device("cpu"))):
        assert join_peers(tp, device, enabled=True) is tp


@pytest.mark.parametrize(
    ("size", "enabled", "words"),
    [
        (2, False, "NCCL (--disable-custom-all-reduce)"),
        (3, True, "NCCL (3 ranks, not 2, 4 or 8)"),
        (16, True, "NCCL (16 ranks, not 2, 4 or 8)"),
    ],
)
def test_settings_decide_before_anything_is_asked(size: int, enabled: bool, words: str) -> None:
    tp = join_peers(TensorParallel(0, size), CUDA, enabled=enabled)
    assert tp.summed_by == words
    assert tp.peers is None


class FakePeers:
    """A rank's inbox; `broken` is what its driver refuses to do."""

    def __init__(self, broken: str) -> None:
        self.broken = broken
        self.is_open = True
        self.is_connected = True

    def handle(self) -> bytes:
        self.fail_if("handle")
        return bytes(64)

    def connect(self, handles: list[bytes]) -> None:
        assert handles == [bytes(64)] * 2
        self.fail_if("connect")

    def disconnect(self) -> None:
        self.is_connected = False

    def close(self) -> None:
        assert not self.is_connected
        self.is_open = False

    def fail_if(self, call: str) -> None:
        if self.broken == call:
            raise native.CudaError(f"{call}: not permitted")


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str, Link], tuple[TensorParallel, FakePeers]]:
    """Rank 0 of two that tell the same; `broken` as in FakePeers."""

    def run(broken: str, link: Link) -> tuple[TensorParallel, FakePeers]:
        made = FakePeers(broken)
        links = [None, link]
        monkeypatch.setattr(peering, "_own", lambda _: vars_of(RANKS[0]))
        monkeypatch.setattr(peering, "_links", lambda *_: links)
        monkeypatch.setattr(TensorParallel, "exchange", both_say)
        monkeypatch.setattr(TensorParallel, "barrier", lambda _: None)
        monkeypatch.setattr(native, "HAS_CUDA", True)
        monkeypatch.setattr(native, "Peers", lambda *_: made, raising=False)
        return join_peers(TensorParallel(0, 2), CUDA, enabled=True), made

    return run


def vars_of(rank: RankDevice) -> dict[str, object]:
    return {"host": rank.host, "uuid": rank.uuid, "name": rank.name, "num_sms": rank.num_sms}


def both_say(_: TensorParallel, text: str) -> list[str]:
    return [text, text.replace("gpu-0", "gpu-1")]


Start = Callable[[str, Link], tuple[TensorParallel, FakePeers]]


def test_two_ranks_that_can(start: Start) -> None:
    tp, made = start("", NVLINK)
    assert isinstance(tp.peers, PeerGroup)
    assert tp.summed_by == f"peer-to-peer kernels up to {MAX_BYTES[2] >> 20} MiB, NCCL beyond"
    assert made.is_open


def test_links_are_asked_before_memory_is_taken(start: Start) -> None:
    tp, _ = start("", PCIE)
    assert tp.peers is None
    assert tp.summed_by == "NCCL (ranks 0 and 1 have no NVLink)"


@pytest.mark.parametrize("call", ["handle", "connect"])
def test_where_handles_do_not_work_nccl_sums(start: Start, call: str) -> None:
    tp, made = start(call, NVLINK)
    assert tp.peers is None
    assert tp.summed_by == f"NCCL ({call}: not permitted)"
    assert not made.is_open


def test_messages_that_the_kernels_take() -> None:
    peers = PeerGroup(FakePeers(""), 2)  # type: ignore[arg-type]
    assert not peers.takes(torch.zeros(8, dtype=torch.bfloat16))  # on the CPU


@pytest.mark.skipif(not native.HAS_CUDA, reason="built without CUDA")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((0, 0, 3), "size must be 2, 4 or 8"),
        ((0, 2, 2), "rank must be below size"),
        ((-1, 0, 2), "device must not be negative"),
        ((0, 0, 2, 129), "max_blocks must be at most 128"),
    ],
)
def test_arguments_of_an_inbox(args: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.Peers(*args)
