"""The dense products of a decode step on CUDA: ours and cuBLAS's, per matrix and row count.

`python -m bench cuda_gemm --shape L8B --rows 1 32 128 256 --variants --json out.json`

A time is one product in the replay of a CUDA graph that walks over enough copies of the weight to
miss L2. cuBLAS's gated product is its GEMM and our act-and-mul after it.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.record import Record, write
from bench.roofline import H100
from bench.shapes import SHAPES
from srt import ops
from srt.core import native

ROWS = (1, 8, 16, 32, 64, 96, 128, 160, 192, 256, 320, 352, 384, 512)
COLD_BYTES = 250e6  # five times the L2 of an H100
# Of the wide GEMM, gated or not: rows of w by rows of x.
TILES = {
    False: ((128, 128), (192, 128), (256, 128), (192, 192)),
    True: ((128, 128), (224, 128), (224, 192)),
}
WideShape = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight [n, k]; gated: gate and up rows, whose product is activated and multiplied."""

    name: str
    n: int
    k: int
    gated: bool = False


def matrices(shape: str) -> tuple[Matrix, ...]:
    """The weights of one layer, and the LM head."""
    c = SHAPES[shape]
    hidden, inter, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    dim = c.get("head_dim") or hidden // heads
    return (
        Matrix("qkv", (heads + 2 * c["num_key_value_heads"]) * dim, hidden),
        Matrix("o", hidden, heads * dim),
        Matrix("gate_up", 2 * inter, hidden, gated=True),
        Matrix("down", hidden, inter),
        Matrix("lm_head", c["vocab_size"], hidden),
    )


def limit_us(matrix: Matrix, rows: int) -> float:
    """Weight bytes over bandwidth or FLOPs over rate, the larger."""
    size = matrix.n * matrix.k
    return max(size * 2 / H100.read_gb_s / 1e3, 2 * rows * size / H100.bf16_tflop_s / 1e6)


Product = Callable[[Tensor, Tensor, Tensor], object]  # x, weight, out


def cublas(matrix: Matrix) -> Product:
    """What torch runs."""

    def run(x: Tensor, weight: Tensor, out: Tensor) -> None:
        y = F.linear(x, weight)
        if matrix.gated:
            stream = torch.cuda.current_stream().cuda_stream
            native.cuda_act_and_mul(y, out, None, "silu", pdl=True, stream=stream)

    return run


def skinny(matrix: Matrix) -> Product:
    """Our GEMM for few rows."""

    def run(x: Tensor, weight: Tensor, out: Tensor) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        native.cuda_skinny_gemm(x, weight, None, out, gated=matrix.gated, pdl=True, stream=stream)

    return run


def wide(matrix: Matrix, shape: WideShape = (0, 0, 0, 0)) -> Product:
    """Our GEMM for more rows; shape: (rows of w, split, pair, rows of x)."""

    def run(x: Tensor, weight: Tensor, out: Tensor) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        native.cuda_wide_gemm(
            x, weight, None, out, gated=matrix.gated, pdl=True, shape=shape, stream=stream
        )

    return run


def variants(matrix: Matrix, rows: int) -> Iterator[WideShape]:
    """Shapes of the wide GEMM that walk little more weight per multiprocessor than the best."""
    pairs = (1,) if rows <= 64 else (1, 2)
    found: list[tuple[float, WideShape]] = []
    for (tile, x_rows), split, pair in itertools.product(TILES[matrix.gated], (1, 2, 4, 8), pairs):
        if split * pair > 8 or split * 4 * 64 > matrix.k:
            continue
        tiles = -(-matrix.n // tile) * -(-rows // (pair * x_rows))
        waves = -(-tiles * split * pair // 132)
        found.append((waves * tile * x_rows / split, (tile, split, pair, x_rows)))
    least = min(cost for cost, _ in found)
    for cost, shape in found:
        if cost <= 1.5 * least:
            yield shape


def replay_us(product: Product, matrix: Matrix, rows: int, repeat: int = 7) -> list[float]:
    """Microseconds of one product, `repeat` samples."""
    copies = max(2, min(64, int(COLD_BYTES / (matrix.n * matrix.k * 2)) + 1))
    weights = torch.randn(copies, matrix.n, matrix.k, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(rows, matrix.k, device="cuda", dtype=torch.bfloat16) / matrix.k**0.5
    out = x.new_empty(rows, matrix.n // 2 if matrix.gated else matrix.n)
    calls = copies * max(1, 24 // copies)
    graph = torch.cuda.CUDAGraph()
    product(x, weights[0], out)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for i in range(calls):
            product(x, weights[i % copies], out)
    samples: list[float] = []
    for _ in range(repeat + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1e3 / calls)
    return samples[1:]


def check(product: Product, matrix: Matrix, rows: int) -> None:
    """A time counts only for a right result."""
    weight = torch.randn(matrix.n, matrix.k, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(rows, matrix.k, device="cuda", dtype=torch.bfloat16) / matrix.k**0.5
    out = x.new_full((rows, matrix.n // 2 if matrix.gated else matrix.n), float("nan"))
    product(x, weight, out)
    y = F.linear(x, weight)
    expected = ops.silu_and_mul(y) if matrix.gated else y
    torch.testing.assert_close(out, expected, rtol=3e-2, atol=3e-2)


def measure(
    name: str, product: Product, shape: str, matrix: Matrix, rows: int, *, checked: bool = True
) -> Record:
    """One row of the table."""
    if checked:
        check(product, matrix, rows)
    samples = replay_us(product, matrix, rows)
    params = {"shape": shape, "matrix": matrix.name, "rows": rows, "n": matrix.n, "k": matrix.k}
    value = statistics.median(samples)
    return Record(name, params, value, "us", limit_us(matrix, rows), samples=samples)


def candidates(matrix: Matrix, rows: int, every: bool) -> Iterator[tuple[str, Product, bool]]:
    """Name, product, and whether its result is checked here."""
    yield "cublas", cublas(matrix), False
    if rows <= 128:
        yield "skinny", skinny(matrix), True
    yield "wide", wide(matrix), True
    for shape in variants(matrix, rows) if every else ():
        yield "wide " + "/".join(map(str, shape)), wide(matrix, shape), True


def table(shape: str, rows: Sequence[int], names: Sequence[str], every: bool) -> list[Record]:
    """All records of one model shape; prints each matrix and row count on one line."""
    found: list[Record] = []
    for matrix in matrices(shape):
        if names and matrix.name not in names:
            continue
        for m in rows:
            line = [
                measure(name, product, shape, matrix, m, checked=checked)
                for name, product, checked in candidates(matrix, m, every)
            ]
            cells = "  ".join(f"{r.name.removeprefix('wide ')} {r.value:.1f}" for r in line)
            print(
                f"{shape} {matrix.name} {m}: limit {limit_us(matrix, m):.1f}  {cells}", flush=True
            )
            found += line
    return found


def main() -> None:
    """Measure the shapes asked for."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--shape", nargs="+", choices=sorted(SHAPES), default=["L8B"])
    ap.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    ap.add_argument("--matrix", nargs="*", default=[])
    ap.add_argument("--variants", action="store_true", help="every shape of the wide GEMM as well")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    records = [
        r for shape in args.shape for r in table(shape, args.rows, args.matrix, args.variants)
    ]
    if args.json:
        write(records, args.json)


if __name__ == "__main__":
    main()
