"""Sums over two GPUs: NCCL and our own kernels, alone and with the residual add and norm behind.

`python -m bench all_reduce --json out.json`: microseconds of a call in a CUDA graph of 64, medians
of rank 0; every sum is checked first. Messages are rows of 4096 values in bfloat16.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.record import Record, write
from srt import ops
from srt.core import native
from srt.ops.peers import PeerGroup
from srt.parallel import TensorParallel, init_tensor_parallel
from srt.peering import join_peers

SIZE = 2
HIDDEN, EPS = 4096, 1e-5
LAUNCHES, REPLAYS = 64, 9
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 512)


class Unlimited(PeerGroup):
    """Sums messages of any length."""

    def __init__(self, peers: native.Peers, size: int) -> None:
        super().__init__(peers, size)
        self._max_bytes = self._max_one_shot_bytes = 1 << 40


def replay_us(launch: Callable[[], object], tp: TensorParallel, stream: torch.cuda.Stream) -> float:
    """Microseconds of a launch."""
    for _ in range(3):
        launch()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    for _ in range(LAUNCHES):
        launch()
    graph.capture_end()
    samples = []
    for _ in range(REPLAYS):
        tp.barrier()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()  # ranks meet in it
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(1e3 * begin.elapsed_time(end) / LAUNCHES)
    del graph
    return statistics.median(samples)


def measure(tp: TensorParallel, device: torch.device) -> list[Record]:
    """A record for each size and way."""
    assert tp.peers is not None
    peers = Unlimited(tp.peers._peers, tp.size)
    stream = torch.cuda.current_stream(device)
    weight = torch.ones(HIDDEN, dtype=torch.bfloat16, device=device)
    records = []
    for rows in ROWS:
        x = torch.randn(rows, HIDDEN, device=device).to(torch.bfloat16)
        residual, out = torch.zeros_like(x), torch.empty_like(x)
        expected = x.clone()
        dist.all_reduce(expected, group=tp.group)
        peers.norm(x, weight, EPS, out, residual=residual)
        assert torch.equal(residual, expected)
        peers.all_reduce(found := x.clone())
        assert torch.equal(found, expected)
        x.zero_()

        def nccl(x: torch.Tensor = x) -> None:
            dist.all_reduce(x, group=tp.group)

        def nccl_norm(x: torch.Tensor = x, residual: torch.Tensor = residual) -> None:
            dist.all_reduce(x, group=tp.group)
            ops.add_rms_norm(x, residual, weight, EPS)

        def own(x: torch.Tensor = x) -> None:
            peers.all_reduce(x)

        def own_norm(
            x: torch.Tensor = x, residual: torch.Tensor = residual, out: torch.Tensor = out
        ) -> None:
            peers.norm(x, weight, EPS, out, residual=residual)

        def nccl_gather(x: torch.Tensor = x) -> None:
            replace(tp, peers=None).all_gather(x)

        def own_gather(x: torch.Tensor = x) -> None:
            peers.all_gather(x)

        ways = {
            "nccl": nccl,
            "own": own,
            "nccl+norm": nccl_norm,
            "own+norm": own_norm,
            "nccl gather": nccl_gather,
            "own gather": own_gather,
        }
        for name, launch in ways.items():
            params = {"way": name, "rows": rows, "bytes": x.nbytes}
            us = replay_us(launch, tp, stream)
            records.append(Record(f"{name} {x.nbytes >> 10} KiB", params, us, "us"))
    return records


@torch.inference_mode()
def run_rank(rank: int, addr: str, out: str | None) -> None:
    """One rank's process."""
    device = torch.device("cuda", rank)
    tp = init_tensor_parallel(rank, SIZE, addr, device)
    torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    tp = join_peers(tp, device, enabled=True)
    if tp.peers is None:
        raise SystemExit(tp.summed_by)
    records = measure(tp, device)
    torch.cuda.synchronize()
    if rank == 0:
        for record in records:
            print(record.row())
        if out is not None:
            write(records, Path(out))
    tp.close()


def main() -> None:
    """See the module's sentence."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        addr = f"127.0.0.1:{probe.getsockname()[1]}"
    spawn: Any = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=run_rank, args=(r, addr, args.json)) for r in range(SIZE)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise SystemExit("a rank failed")


if __name__ == "__main__":
    main()
