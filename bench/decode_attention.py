"""Decode attention alone: microseconds of a layer, with prefixes read apart and read once.

`python -m bench decode_attention --json out.json`; graph replays of the kernel over a random paged
pool, medians. `--weights 1 1.5 2` also sweeps the planner's price of shared tiles.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench._replay import replay_us
from bench.record import Record, write
from bench.roofline import H100
from srt.core import native
from srt.ops import message as msg

PAGE_SIZE = 64
LAUNCHES = 20  # in a graph
OFF_SEQS, SEQ_WORDS, TOTAL_WORDS = msg.HEADER_WORDS, 8, 15


@dataclass(frozen=True, slots=True)
class Case:
    """`groups` of `members` sequences each share `prefix` tokens; each has `own` ones besides."""

    heads: tuple[int, int]
    head_dim: int
    groups: int
    members: int
    prefix: int
    own: int
    kv_format: str = ""

    @property
    def label(self) -> str:
        """For the table."""
        kind = self.kv_format or "bf16"
        shape = f"{self.heads[0]}/{self.heads[1]}x{self.head_dim} {kind}"
        return f"{shape} {self.groups}x{self.members}x({self.prefix}+{self.own})"

    def num_bytes(self, *, once: bool) -> int:
        """Of KV, reading each prefix once or once a member."""
        tokens = self.groups * (self.prefix * (1 if once else self.members))
        tokens += self.groups * self.members * self.own
        width = 1 if self.kv_format else 2
        return tokens * self.heads[1] * self.head_dim * 2 * width


CASES = (
    Case((32, 8), 128, 32, 16, 2048, 160),
    Case((32, 8), 128, 32, 16, 2048, 160, "fp8_e4m3"),
    Case((32, 8), 128, 1, 64, 2048, 512),
    Case((32, 8), 128, 1, 512, 2048, 160),
    Case((32, 8), 128, 8, 4, 8192, 256),
    Case((32, 8), 128, 64, 2, 2048, 160),
    Case((32, 8), 128, 16, 4, 256, 160),
    Case((14, 2), 64, 32, 16, 2048, 160),
    Case((14, 2), 64, 1, 256, 1024, 200),
    Case((32, 8), 64, 32, 16, 2048, 160),
    Case((32, 8), 128, 128, 1, 0, 576),
    Case((32, 8), 128, 1, 1, 0, 1152),
    Case((14, 2), 64, 512, 1, 0, 500),
    Case((14, 2), 64, 1, 1, 0, 1152),
)


@dataclass(frozen=True, slots=True)
class Setup:
    """A case on the device."""

    q: Tensor
    k: Tensor
    v: Tensor
    page_table: Tensor
    message: Tensor  # on the host
    groups: np.ndarray
    pages: np.ndarray


def set_up(case: Case) -> Setup:
    """Random KV; every sequence's own pages, and its group's."""
    batch = case.groups * case.members
    shared, own = case.prefix // PAGE_SIZE, -(-case.own // PAGE_SIZE)
    num_pages = 1 + case.groups * shared + batch * own
    ids = torch.randperm(num_pages - 1, dtype=torch.int32) + 1
    prefixes = ids[: case.groups * shared].view(case.groups, 1, shared)
    table = torch.cat(
        (
            prefixes.expand(-1, case.members, -1).reshape(batch, shared),
            ids[case.groups * shared :].view(batch, own),
        ),
        dim=1,
    )
    shape = (num_pages, case.heads[1], PAGE_SIZE, case.head_dim)
    pool = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    if case.kv_format:
        pool = pool.to(torch.float8_e4m3fn).view(torch.uint8)
    words = torch.zeros(1 << 18, dtype=torch.int32)
    words[msg.NUM_SEQS] = words[msg.NUM_DECODE] = words[msg.NUM_TOKENS] = batch
    words[msg.OFF_SEQS] = OFF_SEQS
    words[TOTAL_WORDS] = OFF_SEQS + SEQ_WORDS * batch
    seqs = msg.section(words, OFF_SEQS, batch, SEQ_WORDS)
    seqs[:, 0] = torch.arange(batch)
    seqs[:, 3] = case.prefix + case.own
    return Setup(
        q=torch.randn(batch, case.heads[0], case.head_dim, device="cuda", dtype=torch.bfloat16),
        k=pool,
        v=torch.roll(pool, 1, 0),
        page_table=table.cuda(),
        message=words,
        groups=np.repeat(np.arange(case.groups, dtype=np.int32), case.members),
        pages=np.full(batch, shared, np.int32),
    )


def measure(case: Case, setup: Setup, *, once: bool, weight: float) -> tuple[float, list[float]]:
    """Microseconds of a launch, and the samples."""
    grid = native.DecodeGrid(*case.heads, case.head_dim, case.kv_format)
    grid.round_weight = weight or grid.round_weight
    message = setup.message.clone()
    prefixes = (setup.groups, setup.pages) if once else ()
    num_words = native.plan_decode(message, [(grid, -1)], *prefixes, page_size=PAGE_SIZE) // 4
    device_message = message[:num_words].cuda()
    workspace = torch.zeros(grid.workspace_bytes, dtype=torch.uint8, device="cuda")
    out = torch.empty_like(setup.q)

    def launch(_: int) -> None:
        native.cuda_decode_attention(
            setup.q,
            setup.k,
            setup.v,
            setup.page_table,
            device_message,
            workspace,
            out,
            scale=case.head_dim**-0.5,
            kv_format=case.kv_format,
            pdl=True,
            stream=torch.cuda.current_stream().cuda_stream,
        )

    samples = replay_us(launch, LAUNCHES)
    return statistics.median(samples), samples


def main() -> None:
    """Time all cases."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--weights", type=float, nargs="*", default=[], help="prices to try")
    ap.add_argument("--commit", help="commit to record where git is not at hand")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    records = []
    for case in CASES:
        setup = set_up(case)
        runs = [(False, 0.0)]
        if case.prefix:
            runs += [(True, weight) for weight in (0.0, *args.weights)]
        for once, weight in runs:
            value, samples = measure(case, setup, once=once, weight=weight)
            name = f"{case.label} {'once' if once else 'apart'}" + (
                f" w={weight}" if weight else ""
            )
            limit = case.num_bytes(once=once) / (H100.read_gb_s * 1e3)
            records.append(Record(name, {}, value, "us", limit, samples=samples))
            print(records[-1].row(), flush=True)
        del setup
    if args.json:
        write(records, args.json, commit=args.commit)


if __name__ == "__main__":
    main()
