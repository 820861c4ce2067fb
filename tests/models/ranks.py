"""Runs models over several ranks, a process each, over gloo on loopback."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.runner import load, random_tokens
from srt.parallel import init_tensor_parallel

PROMPTS = [random_tokens(n, seed=n) for n in (1, 9, 30)]
TIMEOUT_S = 240


@dataclass
class Outputs:
    """logits [T, vocab] of the last prompt in chunks of 8; greedy tokens of each prompt."""

    logits: Tensor
    tokens: list[list[int]]
    num_params: int


def free_addr() -> str:
    """An address with free ports behind it, below those that the system gives to connections."""
    while True:
        port = random.SystemRandom().randrange(20000, 30000)
        with contextlib.ExitStack() as ports, contextlib.suppress(OSError):
            for offset in range(4):
                ports.enter_context(socket.create_server(("127.0.0.1", port + offset)))
            return f"127.0.0.1:{port}"


@dataclass(frozen=True)
class Work:
    """What the ranks run: each model's logits of the last prompt, and greedy tokens of all."""

    folders: list[Path]
    prompts: list[list[int]]
    num_new: int


def run_rank(rank: int, size: int, addr: str, work: Work, out: Path) -> None:
    """One rank's process: loads and runs each model and writes what came out."""
    torch.set_num_threads(1)
    tp = init_tensor_parallel(rank, size, addr, torch.device("cpu"))
    results = []
    for folder in work.folders:
        runner = load(folder, tp)
        logits = runner.logits(work.prompts[-1], chunk=8)
        num_params = sum(p.numel() for p in runner.model.parameters())
        results.append((logits, runner.greedy(work.prompts, work.num_new), num_params))
    torch.save(results, out / f"{rank}.pt")
    tp.close()


def run_ranks(
    size: int,
    folders: list[Path],
    out: Path,
    *,
    prompts: list[list[int]] = PROMPTS,
    num_new: int = 24,
) -> list[list[Outputs]]:
    """Per rank, per model: what it gave."""
    addr = free_addr()
    spawn = multiprocessing.get_context("spawn")
    work = Work(folders, prompts, num_new)
    args = [(rank, size, addr, work, out) for rank in range(size)]
    ranks = [spawn.Process(target=run_rank, args=a) for a in args]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=TIMEOUT_S)
        assert process.exitcode == 0
    return [[Outputs(*r) for r in torch.load(out / f"{rank}.pt")] for rank in range(size)]
