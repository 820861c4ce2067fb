"""Extend attention alone: TFLOP/s of visible pairs, by batch, page size and the order of pages.

`python -m bench extend_attention --json out.json`; graph replays of the kernel over a paged pool,
medians. Pages "in runs" lie side by side in the pool, as a fresh pool hands them out; "scattered"
ones are shuffled.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch

from bench._replay import replay_us
from bench.record import Record, write
from bench.roofline import H100
from srt.core import native

LAUNCHES = 5  # in a graph


@dataclass(frozen=True, slots=True)
class Case:
    """`batch` sequences that extend `cached` tokens by `new` ones; Llama-3-8B's heads."""

    batch: int
    cached: int
    new: int
    page_size: int = 16
    in_runs: bool = True
    kv_format: str = ""
    heads: tuple[int, int] = (32, 8)
    head_dim: int = 128

    @property
    def label(self) -> str:
        """For the table."""
        order = "in runs" if self.in_runs else "scattered"
        size = f"{self.batch}x({self.cached}+{self.new}) {self.kv_format or 'bf16'}"
        return f"{size} page {self.page_size} {order}"

    @property
    def flops(self) -> float:
        """Of the visible (query, key) pairs."""
        pairs = self.new * self.cached + self.new * (self.new + 1) // 2
        return 4.0 * self.batch * pairs * self.heads[0] * self.head_dim


SHAPES = (
    Case(1, 0, 1024),
    Case(16, 0, 1024),
    Case(1, 0, 8192),
    Case(1, 16384, 8192),
    Case(1, 24576, 8192),
    Case(1, 0, 32768),
    Case(64, 2048, 128),
    Case(1, 24576, 8192, kv_format="fp8_e4m3"),
)


def cases() -> list[Case]:
    """Every shape over small pages in both orders, and over long pages."""
    variants = ((16, True), (16, False), (64, True))
    return [replace(shape, page_size=p, in_runs=r) for shape in SHAPES for p, r in variants]


def make_launch(case: Case) -> Callable[[int], None]:
    """The case on the device: a call that plans nothing and launches the kernel once."""
    length = case.cached + case.new
    pages_each = -(-length // case.page_size)
    num_pages = case.batch * pages_each
    order = torch.arange(num_pages) if case.in_runs else torch.randperm(num_pages)
    table = (order + 1).to(torch.int32).view(case.batch, pages_each).cuda()
    shape = (num_pages + 1, case.heads[1], case.page_size, case.head_dim)
    k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    num_tokens = case.batch * case.new
    q = torch.randn(num_tokens, case.heads[0], case.head_dim, device="cuda", dtype=torch.bfloat16)
    if case.kv_format:
        k, v = (x.to(torch.float8_e4m3fn).view(torch.uint8) for x in (k, v))
    ints = {"dtype": torch.int32, "device": "cuda"}
    words = native.cuda_extend_plan_words(num_tokens, case.batch, *case.heads)
    plan = torch.empty(words, **ints)
    native.cuda_extend_plan(
        torch.tensor([0, *accumulate([case.new] * case.batch)], **ints),
        torch.full((case.batch,), length, **ints),
        torch.arange(case.batch, **ints),
        plan,
        num_tokens=num_tokens,
        first_seq=0,
        num_q_heads=case.heads[0],
        num_kv_heads=case.heads[1],
        key_bytes=2 * case.head_dim * k.element_size(),
        num_decode=None,
        stream=torch.cuda.current_stream().cuda_stream,
    )
    out = torch.empty_like(q)

    def launch(_: int) -> None:
        native.cuda_extend_attention(
            q,
            k,
            v,
            table,
            case.batch,
            plan,
            out,
            None,
            scale=case.head_dim**-0.5,
            kv_format=case.kv_format,
            stream=torch.cuda.current_stream().cuda_stream,
        )

    return launch


def main() -> None:
    """Time all cases."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--commit", help="commit to record where git is not at hand")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    records = []
    for case in cases():
        rates = [case.flops / us * 1e-6 for us in replay_us(make_launch(case), LAUNCHES)]
        records.append(
            Record(
                case.label,
                {},
                statistics.median(rates),
                "TFLOP/s",
                H100.bf16_tflop_s,
                higher_is_better=True,
                samples=rates,
            )
        )
        print(records[-1].row(), flush=True)
    if args.json:
        write(records, args.json, commit=args.commit)


if __name__ == "__main__":
    main()
