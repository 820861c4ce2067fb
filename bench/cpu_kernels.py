"""The CPU kernels at SmolLM2-135M's shapes: each against torch, and against what memory allows.

`python -m bench.cpu_kernels [--only linear] [--threads 2] [--json out.json]`
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.record import Record, write
from srt import ops
from srt.batch import ForwardBatch, KvPool
from srt.core import native
from srt.ops import reference

HIDDEN, INTER, LAYERS, HEADS, KV_HEADS, DIM, VOCAB = 576, 1536, 30, 9, 3, 64, 49152
QKV = (HEADS + 2 * KV_HEADS) * DIM
WEIGHTS = {"qkv": (QKV, HIDDEN), "o": (HIDDEN, HIDDEN), "up": (2 * INTER, HIDDEN)}
WEIGHTS |= {"down": (HIDDEN, INTER), "lm_head": (VOCAB, HIDDEN)}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def microseconds(call: Callable[[], object], budget_s: float = 0.4) -> list[float]:
    """Times of single calls, after a warm-up."""
    for _ in range(3):
        call()
    samples: list[float] = []
    end = time.perf_counter() + budget_s
    while time.perf_counter() < end or len(samples) < 5:
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e6)
    return samples


def record(name: str, call: Callable[[], object], limit: float | None, **params: object) -> Record:
    """The median call; the fastest tenth and all samples stay in the record."""
    samples = microseconds(call)
    return Record(name, dict(params), statistics.median(samples), "us", limit, samples=samples)


def bandwidth() -> float:
    """Bytes per microsecond that all threads read from memory: the best of ten passes."""
    x = torch.ones(64 * 2**20)
    return x.numel() * 4 / min(microseconds(lambda: x.sum(), 1.0))


def checked(out: Tensor, expected: Tensor) -> None:
    """A time counts only for a right result."""
    torch.testing.assert_close(out.float(), expected.float(), rtol=2e-2, atol=2e-2)


def linear_records(bytes_per_us: float) -> Iterator[Record]:
    """Every weight of the model; rotating copies keep it out of the caches, as a model does."""
    for dtype_name, dtype in DTYPES.items():
        for weight_name, (n, k) in WEIGHTS.items():
            size = n * k * dtype.itemsize
            copies = [torch.randn(n, k).to(dtype) / 8 for _ in range(max(1, 2**27 // size))]
            for m in (1, 2, 4, 8, 16, 32, 64, 256):
                x = torch.randn(m, k).to(dtype)
                checked(ops.linear(x, copies[0]), F.linear(x, copies[0]))
                for impl, op in (("srt", native_linear), ("torch", F.linear)):
                    at = [0]

                    def call(
                        op: Callable[[Tensor, Tensor], Tensor] = op,
                        x: Tensor = x,
                        copies: list[Tensor] = copies,
                        at: list[int] = at,
                    ) -> Tensor:
                        at[0] = (at[0] + 1) % len(copies)
                        return op(x, copies[at[0]])

                    name = f"linear {weight_name} {dtype_name} m={m} {impl}"
                    yield record(name, call, size / bytes_per_us, m=m, n=n, k=k, impl=impl)


def native_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Our kernel whatever the number of rows, where `ops.linear` would choose."""
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype)
    native.cpu_linear(x, weight, None, out)
    return out


def attention_records(bytes_per_us: float) -> Iterator[Record]:
    """Decodes of several batch sizes and contexts, and one extend."""
    for dtype_name, dtype in DTYPES.items():
        for seqs, q_len, ctx in ((1, 1, 512), (1, 1, 4096), (16, 1, 512), (1, 512, 512)):
            batch = uniform_batch(seqs, q_len, ctx)
            pages = batch.page_table.numel() + 1
            k, v = (torch.randn(pages, KV_HEADS, 16, DIM).to(dtype) for _ in range(2))
            q = torch.randn(seqs * q_len, HEADS, DIM).to(dtype)

            def call(
                q: Tensor = q, k: Tensor = k, v: Tensor = v, batch: ForwardBatch = batch
            ) -> Tensor:
                return ops.paged_attention(q, k, v, batch, scale=DIM**-0.5)

            checked(call(), reference.paged_attention(q, k, v, batch, scale=DIM**-0.5))
            size = 2 * seqs * ctx * KV_HEADS * DIM * dtype.itemsize
            name = f"attention {dtype_name} seqs={seqs} q={q_len} ctx={ctx}"
            limit = size / bytes_per_us if q_len == 1 else None
            yield record(name, call, limit, seqs=seqs, q_len=q_len, ctx=ctx)


def uniform_batch(seqs: int, q_len: int, ctx: int) -> ForwardBatch:
    """`seqs` sequences of `ctx` tokens, the last `q_len` of each being queries; pages of 16."""
    pages = -(-ctx // 16)
    table = torch.randperm(seqs * pages).int().view(seqs, pages) + 1
    empty = torch.empty(0, dtype=torch.int32)
    return ForwardBatch(
        num_tokens=seqs * q_len,
        num_seqs=seqs,
        num_decode=0,
        token_ids=empty,
        positions=empty,
        slots=empty,
        rows=torch.arange(seqs, dtype=torch.int32),
        q_indptr=torch.arange(seqs + 1, dtype=torch.int32) * q_len,
        seq_lens=torch.full((seqs,), ctx, dtype=torch.int32),
        page_table=table,
        logit_idx=empty,
        max_q_len=q_len,
        max_seq_len=ctx,
        kv=KvPool((), (), 16, "", (), ()),
    )


def small_records(_: float) -> Iterator[Record]:
    """Ops of a few microseconds, where the call counts."""
    for dtype_name, dtype in DTYPES.items():
        for rows in (1, 16):
            x, weight = torch.randn(rows, HIDDEN).to(dtype), torch.ones(HIDDEN).to(dtype)
            gate = torch.randn(rows, 2 * INTER).to(dtype)
            logits = torch.randn(rows, VOCAB).to(dtype)
            ids = torch.zeros(rows, dtype=torch.int32)
            cases: dict[str, Callable[[], object]] = {
                "add_rms_norm": lambda x=x, w=weight: ops.add_rms_norm(x, x, w, 1e-5),
                "silu_and_mul": lambda gate=gate: ops.silu_and_mul(gate),
                "token_logprobs": lambda a=logits, ids=ids: ops.token_logprobs(a, ids),
            }
            for name, call in cases.items():
                yield record(f"{name} {dtype_name} rows={rows}", call, None, rows=rows)


def step_records(bytes_per_us: float) -> Iterator[Record]:
    """The linears of one whole decode step, weights streamed in model order."""
    for dtype_name, dtype in DTYPES.items():
        layers = [
            [torch.randn(*WEIGHTS[name]).to(dtype) / 8 for name in ("qkv", "o", "up", "down")]
            for _ in range(LAYERS)
        ]
        head = torch.randn(*WEIGHTS["lm_head"]).to(dtype)
        size = (sum(w.numel() for layer in layers for w in layer) + head.numel()) * dtype.itemsize
        for m in (1, 16):
            wide = {k: torch.randn(m, k).to(dtype) for k in (HIDDEN, INTER)}
            for impl, op in (("srt", native_linear), ("torch", F.linear)):

                def call(
                    op: Callable[[Tensor, Tensor], Tensor] = op,
                    layers: list[list[Tensor]] = layers,
                    head: Tensor = head,
                    wide: dict[int, Tensor] = wide,
                ) -> None:
                    for layer in layers:
                        for weight in layer:
                            op(wide[weight.shape[1]], weight)
                    op(wide[HIDDEN], head)

                name = f"all linears {dtype_name} m={m} {impl}"
                yield record(name, call, size / bytes_per_us, m=m, impl=impl)


GROUPS = {
    "linear": linear_records,
    "attention": attention_records,
    "small": small_records,
    "step": step_records,
}


def main() -> None:
    """Prints a table; writes JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(GROUPS), nargs="*", default=sorted(GROUPS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    bytes_per_us = bandwidth()
    print(f"{native.cpu_isa()}, {args.threads} threads, {bytes_per_us / 1e3:.1f} GB/s read")
    records = []
    for group in args.only:
        for row in GROUPS[group](bytes_per_us):
            print(row.row(), flush=True)
            records.append(row)
    if args.json:
        write(records, args.json)


if __name__ == "__main__":
    main()
