"""CUDA kernels of latent attention and of experts, against their byte and FLOP bounds.

`python -m bench gpu_kernels --json out.json`: replays of a CUDA graph over rotating inputs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.record import Record, write
from bench.roofline import H100
from srt import ops
from srt.batch import DecodeKind, ForwardBatch, KvPool
from srt.engine.decode_plan import DecodePlanner
from srt.engine.step import TOTAL_WORDS
from srt.ops import message as msg
from srt.ops.fp8 import Fp8Rows, Rows, quantize_groups, quantize_rows

REPLAYS, ROUNDS = 5, 7
PAGE_SIZE = 64
LATENT_DIM, VALUE_DIM = 576, 512


def time_us(steps: list[Callable[[], object]]) -> list[float]:
    """Microseconds of one step, `ROUNDS` samples; the steps follow each other in one graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # what the steps read is being made there
    with torch.cuda.stream(stream):
        for step in steps:
            step()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        for step in steps:
            step()
        graph.capture_end()
        samples = []
        for _ in range(ROUNDS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(REPLAYS):
                graph.replay()
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end) * 1e3 / REPLAYS / len(steps))
    return samples


def record(
    name: str, params: dict[str, object], samples: list[float], num_bytes: float, flops: float
) -> Record:
    limit_us = max(num_bytes / H100.read_gb_s * 1e-3, flops / H100.bf16_tflop_s * 1e-6)
    row = Record(
        name=name,
        params=params | {"bytes": num_bytes, "flops": flops},
        value=statistics.median(samples),
        unit="us",
        limit=limit_us,
        samples=samples,
    )
    print(row.row(), flush=True)
    return row


def latent_batch(
    lens: list[tuple[int, int]], heads: int, kv_format: str, *, decode: bool
) -> tuple[ForwardBatch, int]:
    """A step of (q_len, seq_len) over shuffled pages, and how many pages there are."""
    device = torch.device("cuda")

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    num_pages = [-(-n // PAGE_SIZE) for _, n in lens]
    table = torch.zeros(len(lens), max(num_pages), dtype=torch.int32)
    for row, own in enumerate((torch.randperm(sum(num_pages)) + 1).split(num_pages)):
        table[row, : len(own)] = own.int()
    q_lens = [q for q, _ in lens]
    empty = ints([])
    batch = ForwardBatch(
        num_tokens=sum(q_lens),
        num_seqs=len(lens),
        num_decode=len(lens) if decode else 0,
        token_ids=empty,
        positions=empty,
        slots=empty,
        rows=ints(list(range(len(lens)))),
        q_indptr=ints([0, *accumulate(q_lens)]),
        seq_lens=ints([n for _, n in lens]),
        page_table=table.to(device),
        logit_idx=empty,
        max_q_len=max(q_lens),
        max_seq_len=max(n for _, n in lens),
        kv=KvPool((), (), PAGE_SIZE, kv_format, (), ()),
    )
    if not decode:
        return batch, sum(num_pages) + 1
    planner = DecodePlanner({DecodeKind(heads, 1, LATENT_DIM, -1)}, kv_format, device)
    message = torch.zeros((1 << 14) + planner.max_words, dtype=torch.int32)
    message[msg.NUM_SEQS] = message[msg.NUM_DECODE] = message[msg.NUM_TOKENS] = len(lens)
    message[msg.OFF_SEQS] = msg.HEADER_WORDS
    message[TOTAL_WORDS] = msg.HEADER_WORDS + 8 * len(lens)
    records = msg.section(message, msg.HEADER_WORDS, len(lens), 8)
    records[:, 0] = torch.arange(len(lens), dtype=torch.int32)
    records[:, 3] = batch.seq_lens.cpu()
    planner.plan(message)
    return replace(
        batch,
        decode_work=message.to(device),
        decode_plans=planner.offsets,
        attn_workspace=planner.workspace,
    ), sum(num_pages) + 1


def latent() -> Iterator[Record]:
    """DeepSeek-V2-Lite (16 heads) and V2 (128 heads, 16 at TP 8): decodes, then prompts."""
    decodes = [(16, 1, 8192), (16, 32, 1024), (16, 32, 8192), (16, 128, 1024), (16, 256, 2048)]
    decodes += [(128, 32, 4096), (128, 128, 1024)]
    cases = [(*case, "", True) for case in decodes] + [(16, 32, 8192, "fp8_e4m3", True)]
    cases += [(16, 1, 4096, "", False), (16, 16, 1024, "", False), (128, 1, 2048, "", False)]
    for heads, num_seqs, seq_len, kv_format, decode in cases:
        q_len = 1 if decode else seq_len
        lens = [(q_len, seq_len)] * num_seqs
        batch, num_pages = latent_batch(lens, heads, kv_format, decode=decode)
        shape = (num_pages, 1, PAGE_SIZE, LATENT_DIM)
        pool_bytes = num_pages * PAGE_SIZE * LATENT_DIM * (1 if kv_format else 2)
        copies = max(2, min(8, -(-(200 << 20) // pool_bytes))) if decode else 1
        caches = [torch.randn(shape, device="cuda").bfloat16() for _ in range(copies)]
        if kv_format:
            caches = [cache.to(torch.float8_e4m3fn).view(torch.uint8) for cache in caches]
        q = torch.randn(batch.num_tokens, heads, LATENT_DIM, device="cuda").bfloat16()

        def step(
            cache: Tensor, q: Tensor = q, batch: ForwardBatch = batch, fmt: str = kv_format
        ) -> Tensor:
            return ops.latent_attention(q, cache, VALUE_DIM, batch, scale=0.07, kv_format=fmt)

        samples = time_us([lambda c=c, run=step: run(c) for c in caches])
        pairs = num_seqs * (seq_len if decode else seq_len * (seq_len + 1) // 2)
        num_bytes = num_seqs * seq_len * LATENT_DIM * (1 if kv_format else 2)
        num_bytes += batch.num_tokens * heads * (LATENT_DIM + VALUE_DIM) * 2
        flops = 2 * (LATENT_DIM + VALUE_DIM) * pairs * heads
        kind = "decode" if decode else "extend"
        params = {"heads": heads, "batch": num_seqs, "context": seq_len, "kv": kv_format or "bf16"}
        name = f"latent {kind} {heads}h {num_seqs}x{seq_len} {params['kv']}"
        yield record(name, params, samples, num_bytes, flops)
        del caches, q


def experts() -> Iterator[Record]:
    """The routed experts of DeepSeek-V2-Lite, Qwen3-30B-A3B and Mixtral 8x7B, by tokens."""
    models = {"V2-Lite": (64, 6, 2048, 1408), "Qwen3-30B": (128, 8, 2048, 768)}
    models["Mixtral"] = (8, 2, 4096, 14336)
    for model, (num_experts, top_k, hidden, size) in models.items():
        gate_up = torch.randn(num_experts, 2 * size, hidden, device="cuda").bfloat16() / 64
        down = torch.randn(num_experts, hidden, size, device="cuda").bfloat16() / 64
        stored = {
            f"experts in fp8{form}": tuple(Fp8Rows(*quantize(w)) for w in (gate_up, down))
            for form, quantize in (("", quantize_rows), (" blocks", quantize_groups))
        }
        for tokens in (1, 8, 32, 128, 512, 4096):
            inputs = []
            for _ in range(6 if tokens <= 512 else 2):
                x = torch.randn(tokens, hidden, device="cuda").bfloat16()
                logits = torch.randn(tokens, num_experts, device="cuda")
                inputs.append((x, *ops.route(logits, top_k, norm_order=1.0)))
            used = statistics.mean(len(chosen.unique()) for _, _, chosen in inputs)
            num_bytes = used * 3 * size * hidden * 2 + 4 * tokens * hidden
            flops = 6.0 * tokens * top_k * size * hidden
            params = {"experts": num_experts, "top_k": top_k, "hidden": hidden, "size": size}
            params |= {"tokens": tokens}

            def ours(
                x: Tensor, weights: Tensor, chosen: Tensor, up: Rows = gate_up, dn: Rows = down
            ) -> Tensor:
                return ops.experts_mlp(x, up, dn, weights, chosen, "silu")

            def torchs(
                x: Tensor, weights: Tensor, chosen: Tensor, up: Tensor = gate_up, dn: Tensor = down
            ) -> Tensor:
                return grouped_mm(x, up, dn, weights, chosen)

            kinds = [("experts", ours), ("experts by grouped_mm", torchs)]
            kinds += [(name, partial(ours, up=up, dn=dn)) for name, (up, dn) in stored.items()]
            for kind, run in kinds:
                samples = time_us([lambda a=a, run=run: run(*a) for a in inputs])
                read = num_bytes - (used * 3 * size * hidden if "fp8" in kind else 0)
                yield record(f"{kind} {model} {tokens}", params, samples, read, flops)
        route = partial(ops.route, torch.randn(32, num_experts, device="cuda"), top_k)
        samples = time_us([route] * 8)
        yield record(f"route {model} 32", {"tokens": 32}, samples, 32 * num_experts * 4, 0)


def grouped_mm(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """The same through torch's grouped GEMM: what to compare with."""
    top_k = chosen.shape[1]
    by_expert, order = chosen.flatten().sort(stable=True)
    ids = torch.arange(gate_up.shape[0], device=x.device)
    ends = torch.searchsorted(by_expert, ids, right=True).to(torch.int32)
    hidden = F.grouped_mm(x[order // top_k], gate_up.transpose(1, 2), offs=ends)
    hidden = ops.silu_and_mul(hidden)
    out = F.grouped_mm(hidden, down.transpose(1, 2), offs=ends)
    rows = torch.empty_like(out)
    rows[order] = out
    per_token = rows.view(-1, top_k, x.shape[1])
    return torch.einsum("tkh,tk->th", per_token.float(), weights).to(x.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", help="where there is no git")
    parser.add_argument("--only", choices=["latent", "experts"])
    args = parser.parse_args()
    rows = []
    if args.only != "experts":
        rows += [*latent()]
    if args.only != "latent":
        rows += [*experts()]
    if args.json is not None:
        write(rows, args.json, commit=args.commit)


if __name__ == "__main__":
    main()
