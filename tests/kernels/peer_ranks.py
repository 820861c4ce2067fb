"""Ranks in processes of their own that sum over each other's memory, and what they found."""

from __future__ import annotations

import multiprocessing
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kernels.peer_sums import in_rank_order
from models.ranks import free_addr
from srt.layers.norm import whole_or_peers
from srt.ops import reference
from srt.ops.peers import PeerGroup
from srt.parallel import TensorParallel, init_tensor_parallel
from srt.peering import _connect, join_peers

TIMEOUT_S = 120
EPS = 1e-5
MOST = 64 * 4096  # values of a message


@dataclass(frozen=True)
class Work:
    """one_device: the ranks share a GPU, where NCCL and the chooser refuse."""

    size: int
    num_rounds: int
    one_device: bool = False


@dataclass
class Findings:
    """What a rank saw: the chooser's words, and calls whose result was not the expected."""

    summed_by: str
    disabled: str
    wrong: list[str]
    graph_wrong: int
    digest: float


def draw_all(size: int, index: int, count: int, device: torch.device) -> Tensor:
    """bfloat16 [size, count] of round `index`: all ranks' inputs, which every rank can make."""
    rng = torch.Generator(device).manual_seed(index)
    wide = torch.randn(size, count, generator=rng, device=device)
    return wide.to(torch.bfloat16)


def join(rank: int, work: Work, addr: str) -> tuple[TensorParallel, torch.device]:
    """The rank's group, with peers."""
    if not work.one_device:
        device = torch.device("cuda", rank)
        tp = init_tensor_parallel(rank, work.size, addr, device)
        return join_peers(tp, device, enabled=True), device
    tp = init_tensor_parallel(rank, work.size, addr, torch.device("cpu"))
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    peers, failure = _connect(tp, device)
    assert not failure
    assert peers is not None
    return replace(tp, peers=PeerGroup(peers, work.size), summed_by="one device"), device


def run_rounds(
    tp: TensorParallel, device: torch.device, num_rounds: int
) -> tuple[list[str], float]:
    """Sums and norms of all sizes, ranks late at random; what came out wrong, and a digest."""
    assert tp.peers is not None
    rng = random.Random(7)  # the same on every rank, so that all make the same calls
    own = random.Random(tp.rank)
    weight = draw_all(1, 12345, 8192, device)[0]
    wrong, digest = [], 0.0
    for index in range(num_rounds):
        rows, hidden = rng.choice([1, 2, 7, 32, 130, 300]), rng.choice([256, 1032, 4096, 8192])
        rows = max(1, min(rows, MOST // hidden))
        with_norm = rng.random() < 0.5
        x = draw_all(tp.size, index, rows * hidden, device).view(tp.size, rows, hidden)
        part, residual = x[tp.rank].clone(), x[0].clone()
        if own.random() < 0.3:
            torch.cuda._sleep(own.randrange(200_000))
        expected = in_rank_order(x)
        if with_norm:
            out = torch.full_like(part, float("nan"))
            assert whole_or_peers(part, residual, tp) == (part, tp.peers)
            tp.peers.norm(part, weight[:hidden], EPS, out, residual=residual)
            stream = x[0] + expected
            naive = reference.rms_norm(stream, weight[:hidden], EPS)
            ok = torch.equal(residual, stream)
            ok = ok and bool(((out - naive).abs() <= 0.02 * naive.abs() + 0.02).all())
        else:
            out = tp.all_reduce(part)
            ok = torch.equal(out, expected)
        gathered = tp.all_gather(x[tp.rank, :, :256].contiguous())
        ok = ok and torch.equal(gathered, x[:, :, :256].transpose(0, 1).flatten(1))
        digest += float(out.double().sum())
        if not ok:
            wrong.append(f"call {index}: {rows} x {hidden}, norm {with_norm}")
    return wrong, digest


def run_graph(tp: TensorParallel, device: torch.device, replays: int) -> int:
    """A graph of 64 sums and norms; replays whose result was not the expected."""
    assert tp.peers is not None
    hidden, rows, calls = 4096, 4, 32
    x = draw_all(tp.size, 0, calls * rows * hidden, device).view(tp.size, calls, rows, hidden)
    mine, out = x[tp.rank].clone(), torch.empty_like(x[0])
    sums, weight = torch.empty_like(out), torch.ones(hidden, dtype=x.dtype, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
        for i in range(calls):
            tp.peers.norm(mine[i], weight, EPS, out[i])
            sums[i].copy_(mine[i])
            tp.peers.all_reduce(sums[i])
    wrong, own = 0, random.Random(tp.rank)
    for replay in range(replays):
        x = draw_all(tp.size, 1000 + replay, x[0].numel(), device).view(x.shape)
        mine.copy_(x[tp.rank])
        out.fill_(float("nan"))
        if own.random() < 0.5:
            torch.cuda._sleep(own.randrange(300_000))
        graph.replay()
        expected = in_rank_order(x)
        naive = reference.rms_norm(expected, weight, EPS)
        ok = torch.equal(sums, expected)
        ok = ok and bool(((out - naive).abs() <= 0.02 * naive.abs() + 0.02).all())
        wrong += not ok
    del graph
    return wrong


@torch.inference_mode()
def run_rank(rank: int, addr: str, work: Work, out: Path) -> None:
    """One rank's process."""
    tp, device = join(rank, work, addr)
    disabled = ""
    if not work.one_device:
        disabled = join_peers(replace(tp, peers=None), device, enabled=False).summed_by
    wrong, digest = run_rounds(tp, device, work.num_rounds)
    graph_wrong = run_graph(tp, device, 4 if work.one_device else 50)
    torch.cuda.synchronize()
    tp.close()
    assert not dist.is_initialized()
    found = Findings(tp.summed_by, disabled, wrong, graph_wrong, digest)
    torch.save(vars(found), out / f"{rank}.pt")


def run_ranks(work: Work, out: Path) -> list[Findings]:
    """Per rank, what it found."""
    spawn: Any = multiprocessing.get_context("spawn")
    addr = free_addr()
    ranks = [spawn.Process(target=run_rank, args=(r, addr, work, out)) for r in range(work.size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=TIMEOUT_S)
        if process.exitcode is None:
            for other in ranks:
                other.kill()
        assert process.exitcode == 0
    return [Findings(**torch.load(out / f"{r}.pt")) for r in range(work.size)]
