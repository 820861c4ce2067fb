"""Decode attention among its neighbours: microseconds of a whole layer, with and without it.

`python -m bench decode_layer --shape L8B`; a graph replays the kernels of some layers as a decode
step launches them, over weights and KV that do not fit into L2. Alone, the attention kernel starts
behind itself; here it shares the chip with what stands before and behind it. With `--fp8` the
weights are fp8 and activations e4m3 between the products, as `--quantization fp8` runs them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.record import Record, write
from bench.shapes import SHAPES
from srt import ops
from srt.core import native
from srt.ops import cuda, fp8
from srt.ops import message as msg
from srt.ops.fp8 import Fp8Rows, RowFormat, Rows

PAGE_SIZE = 64
MIN_BYTES = 3 << 30  # of weights: more than L2 holds many times over
ROUNDS = 9
KV_DTYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
TO = RowFormat("token", or_group=True)
OFF_SEQS, SEQ_WORDS, TOTAL_WORDS = msg.HEADER_WORDS, 8, 15
CASES = {
    "L8B": ((1, 1152), (8, 1152), (32, 1088), (128, 576), (256, 576)),
    "L1B": ((1, 1152), (32, 1088), (256, 576)),
    "Q05": ((1, 1152), (32, 1088), (256, 576), (512, 500)),
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a layer."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    dim: int

    @classmethod
    def of(cls, shape: str) -> Sizes:
        """Of one of bench.shapes."""
        s = SHAPES[shape]
        heads = s["num_attention_heads"]
        dim = s.get("head_dim", s["hidden_size"] // heads)
        kv_heads = s["num_key_value_heads"]
        return cls(s["hidden_size"], s["intermediate_size"], heads, kv_heads, dim)

    @property
    def qkv(self) -> int:
        """Columns of the fused projection."""
        return (self.heads + 2 * self.kv_heads) * self.dim

    @property
    def num_bytes(self) -> int:
        """Of the weights, in bf16."""
        products = self.qkv + self.heads * self.dim + 3 * self.inner
        return 2 * self.hidden * products


Matrix = Tensor | Fp8Rows


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights and the pool of one layer."""

    norm: Tensor
    qkv: Matrix
    o: Matrix
    gate_up: Matrix
    down: Matrix
    k: Tensor
    v: Tensor


def rand(*shape: int) -> Tensor:
    """bf16 on the device, small enough for long chains of products."""
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * shape[-1] ** -0.5


def linear(x: Rows, weight: Matrix) -> Tensor:
    """The product, by how the weight is stored."""
    if isinstance(weight, Tensor):
        assert isinstance(x, Tensor)
        return ops.linear(x, weight)
    return fp8.linear_fp8(fp8.quantize(x, TO) if isinstance(x, Tensor) else x, *weight)


def make_layer(s: Sizes, num_pages: int, kv_format: str, *, in_fp8: bool) -> Layer:
    """Random."""
    pool = rand(num_pages, s.kv_heads, PAGE_SIZE, s.dim)

    def matrix(n: int, k: int) -> Matrix:
        wide = rand(n, k)
        return Fp8Rows(*fp8.quantize_rows(wide)) if in_fp8 else wide

    if kv_format:
        pool = pool.to(KV_DTYPES[kv_format]).view(torch.uint8)
    return Layer(
        norm=torch.ones(s.hidden, device="cuda", dtype=torch.bfloat16),
        qkv=matrix(s.qkv, s.hidden),
        o=matrix(s.hidden, s.heads * s.dim),
        gate_up=matrix(2 * s.inner, s.hidden),
        down=matrix(s.hidden, s.inner),
        k=pool,
        v=torch.roll(pool, 1, 0),
    )


class Step:
    """A decode step of `batch` sequences of `length` tokens, over some layers."""

    def __init__(
        self, shape: str, batch: int, length: int, kv_format: str, *, in_fp8: bool
    ) -> None:
        self.sizes = s = Sizes.of(shape)
        self.kv_format = kv_format
        self.in_fp8 = in_fp8
        per_seq = -(-length // PAGE_SIZE)
        num_layers = max(4, -(-MIN_BYTES // s.num_bytes))
        self.layers = [
            make_layer(s, batch * per_seq, kv_format, in_fp8=in_fp8) for _ in range(num_layers)
        ]
        ids = torch.randperm(batch * per_seq, dtype=torch.int32).view(batch, per_seq)
        self.page_table = ids.cuda()
        last = ids[:, -1].long() * PAGE_SIZE + (length - 1) % PAGE_SIZE
        self.slots = last.to(torch.int32).cuda()
        self.positions = torch.full((batch,), length - 1, dtype=torch.int32, device="cuda")
        self.cos_sin = torch.randn(length, s.dim, device="cuda")
        self.x = rand(batch, s.hidden)
        self.message, self.workspace = self.plan(batch, length)

    def plan(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """The device's message and workspace."""
        s = self.sizes
        grid = native.DecodeGrid(s.heads, s.kv_heads, s.dim, self.kv_format)
        words = torch.zeros(1 << 18, dtype=torch.int32)
        words[msg.NUM_SEQS] = words[msg.NUM_DECODE] = words[msg.NUM_TOKENS] = batch
        words[msg.OFF_SEQS] = OFF_SEQS
        words[TOTAL_WORDS] = OFF_SEQS + SEQ_WORDS * batch
        seqs = msg.section(words, OFF_SEQS, batch, SEQ_WORDS)
        seqs[:, 0] = torch.arange(batch)
        seqs[:, 3] = length
        num_words = native.plan_decode(words, [(grid, -1)]) // 4
        workspace = torch.zeros(grid.workspace_bytes, dtype=torch.uint8, device="cuda")
        return words[:num_words].cuda(), workspace

    def attend(self, layer: Layer, q: Tensor, *, runs: bool) -> Rows:
        """The decode attention, or an output that nothing wrote."""
        out: Rows
        into = scales = None
        if self.in_fp8 and q.shape[0] <= cuda.MAX_FP8_ROWS and q.shape[2] == fp8.GROUP:
            stored, scales = cuda.fp8_target(
                (q.shape[0], q.shape[1] * q.shape[2]), q.device, "group"
            )
            into = stored.view(torch.uint8).view(q.shape)
            assert scales is not None
            out = Fp8Rows(stored, scales)
        else:
            into = torch.empty(q.shape, device="cuda", dtype=q.dtype)
            out = into.flatten(1)
        if not runs:
            return out
        native.cuda_decode_attention(
            q,
            layer.k,
            layer.v,
            self.page_table,
            self.message,
            self.workspace,
            into,
            out_scales=scales,
            scale=self.sizes.dim**-0.5,
            kv_format=self.kv_format,
            pdl=cuda.is_hopper(q.device),
            stream=torch.cuda.current_stream().cuda_stream,
        )
        return out

    def norm(self, h: Tensor, layer: Layer, residual: Tensor) -> Rows:
        """RMSNorm with the residual."""
        if self.in_fp8:
            return fp8.norm(h, layer.norm, 1e-5, TO, residual=residual)
        return cuda.norm(h, layer.norm, 1e-5, residual=residual)

    def gate(self, h: Rows, gate_up: Matrix) -> Rows:
        """The first product of the MLP, gated."""
        if isinstance(gate_up, Tensor):
            assert isinstance(h, Tensor)
            return ops.linear_silu_mul(h, gate_up)
        return fp8.linear_act_mul(h, *gate_up, "silu", TO)

    def run(self, *, attention: bool) -> None:
        """Every kernel of the step but the embedding and the head."""
        s = self.sizes
        residual = self.x.clone()
        h = self.x.clone()
        for layer in self.layers:
            qkv = linear(self.norm(h, layer, residual), layer.qkv)
            qkv = qkv.view(-1, s.heads + 2 * s.kv_heads, s.dim)
            q, k, v = qkv.split([s.heads, s.kv_heads, s.kv_heads], dim=1)
            cuda.rotary(
                q,
                k,
                self.positions,
                self.cos_sin,
                interleaved=False,
                v=v,
                slots=self.slots,
                k_cache=layer.k,
                v_cache=layer.v,
                kv_format=self.kv_format,
            )
            h = linear(self.attend(layer, q, runs=attention), layer.o)
            h = linear(self.gate(self.norm(h, layer, residual), layer.gate_up), layer.down)


def time_us(run: Callable[[], None]) -> list[float]:
    """Microseconds of a replay of `run` as a graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        run()
        graph.capture_end()
        samples = []
        for _ in range(ROUNDS + 1):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end) * 1e3)
    return samples[1:]


def main() -> None:
    """Time all cases of the shapes."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--shape", choices=sorted(CASES), nargs="+", default=sorted(CASES))
    ap.add_argument("--batch", type=int, nargs="*", help="only these batch sizes")
    ap.add_argument("--kv-format", default="", choices=["", "fp8_e4m3", "fp8_e5m2"])
    ap.add_argument("--fp8", action="store_true", help="fp8 weights")
    ap.add_argument("--commit", help="commit to record where git is not at hand")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    records = []
    for shape in args.shape:
        for batch, length in CASES[shape]:
            if args.batch and batch not in args.batch:
                continue
            step = Step(shape, batch, length, args.kv_format, in_fp8=args.fp8)
            case = {"shape": shape, "batch": batch, "length": length, "kv": args.kv_format}
            case["weights"] = "fp8" if args.fp8 else "bf16"
            for attention in (True, False):
                samples = [
                    t / len(step.layers) for t in time_us(partial(step.run, attention=attention))
                ]
                what = "layer" if attention else "layer without attention"
                name = f"{shape} {case['weights']} {args.kv_format} ({batch},{length}) {what}"
                records.append(
                    Record(name, case, statistics.median(samples), "us", samples=samples)
                )
                print(records[-1].row(), flush=True)
            del step
    if args.json:
        write(records, args.json, commit=args.commit)


if __name__ == "__main__":
    main()
