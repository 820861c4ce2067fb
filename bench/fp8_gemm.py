"""fp8 products at a model's shapes: our skinny kernel by launch shape, torch._scaled_mm, bf16.

`python -m bench fp8_gemm [--shape L8B] [--rows 1 32 128] [--sweep] [--json out.json]`. Times are
of CUDA graph replays over weights that do not fit in the L2 cache together.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.record import Record, write
from bench.roofline import H100
from bench.shapes import SHAPES
from srt.core import native
from srt.ops import cuda, fp8
from srt.ops.fp8 import RowFormat

COLD_BYTES = 160 << 20  # of weights between two uses of the same one: three L2 caches
REPEAT = 7


def matrices(shape: dict[str, Any]) -> dict[str, tuple[int, int, bool]]:
    """A layer's products: name → (n, k, gated)."""
    hidden, inter = shape["hidden_size"], shape["intermediate_size"]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    dim = shape.get("head_dim") or hidden // heads
    return {
        "qkv": ((heads + 2 * kv_heads) * dim, hidden, False),
        "o": (hidden, heads * dim, False),
        "gate_up": (2 * inter, hidden, True),
        "down": (hidden, inter, False),
    }


def replay_us(call: Callable[[int], object], num_calls: int) -> float:
    """Microseconds of one call, in a graph of `num_calls` that get their index."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(num_calls):
            call(i)
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        for i in range(num_calls):
            call(i)
        graph.capture_end()
        samples = []
        for _ in range(REPEAT + 2):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end) * 1e3 / num_calls)
    return statistics.median(samples[2:])


def random_fp8(*shape: int) -> Tensor:
    """Uniform bits without NaN."""
    bits = torch.randint(0, 127, shape, dtype=torch.uint8, device="cuda")
    return bits.bitwise_or_(torch.randint(0, 2, shape, dtype=torch.uint8, device="cuda") << 7)


def launch_shapes(kernel: str, rows: int) -> Iterator[tuple[int, ...]]:
    """To try: skinny (row groups, split, CTAs), wide (tile, split, CTAs, stages), gated (CTAs,
    stages, stages of x)."""
    if kernel == "wide":
        yield from ((tile, split, 0, 0) for tile in (48, 64, 96) for split in (1, 2, 3, 4))
    elif kernel == "gated":
        rings = ((3, 2), (3, 3), (4, 2), (4, 3), (4, 4), (5, 2), (5, 3))
        yield from ((0, *ring) for ring in rings)
    else:
        for groups in (1, 2, 4) if rows > 32 else (1, 2):
            yield from ((groups, split, 0) for split in range(2, 9))
            yield from ((groups, 1, ctas) for ctas in (0, 132, 264))


class Product:
    """One matrix in enough copies that each is cold when it is used."""

    def __init__(self, n: int, k: int, gated: bool) -> None:
        self.n, self.k, self.gated = n, k, gated
        self.copies = max(4, -(-COLD_BYTES // (n * k)))
        self.weights = [random_fp8(n, k) for _ in range(self.copies)]
        self.scales = torch.full((n,), 2.0**-10, device="cuda")

    def ours(
        self,
        rows: int,
        kernel: str,
        shape: tuple[int, ...] = (),
        *,
        in_groups: bool = False,
        to_groups: bool = False,
    ) -> float:
        """in_groups: x has scales of groups; to_groups: y, gated, is e4m3 and gets them."""
        x = random_fp8(rows, self.k)
        x_scales = torch.ones(rows, device="cuda")
        if in_groups:
            x_scales = cuda.group_scales(rows, -(-self.k // fp8.GROUP), x.device).fill_(1.0)
        n_out = self.n // 2 if self.gated else self.n
        out = torch.empty(rows, n_out, dtype=torch.bfloat16, device="cuda")
        y_scales = None
        if to_groups:
            out = random_fp8(rows, n_out)
            y_scales = cuda.group_scales(rows, n_out // fp8.GROUP, x.device)
        launch = {
            "skinny": partial(native.cuda_skinny_fp8_gemm, bias=None, gated=self.gated),
            "wide": partial(native.cuda_wide_fp8_gemm, bias=None),
            "gated": native.cuda_gated_fp8_gemm,
        }[kernel]
        options: dict[str, Any] = {"shape": shape} if shape else {}
        if self.gated:
            options["y_scales"] = y_scales

        def call(i: int) -> None:
            launch(
                x=x,
                x_scales=x_scales,
                w=self.weights[i % self.copies],
                w_scales=self.scales,
                y=out,
                pdl=True,
                stream=torch.cuda.current_stream().cuda_stream,
                **options,
            )

        return replay_us(call, 2 * self.copies)

    def scaled_mm(self, rows: int, *, by_row: bool = True) -> float:
        x = random_fp8(rows, self.k).view(torch.float8_e4m3fn)
        one = torch.ones((), device="cuda")
        a = torch.ones(rows, 1, device="cuda") if by_row else one
        b = self.scales.unsqueeze(0) if by_row else one

        def call(i: int) -> None:
            torch._scaled_mm(
                x,
                self.weights[i % self.copies].view(torch.float8_e4m3fn).t(),
                scale_a=a,
                scale_b=b,
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )

        return replay_us(call, 2 * self.copies if rows <= 256 else 4)

    def bf16(self, rows: int) -> float:
        x = torch.randn(rows, self.k, device="cuda", dtype=torch.bfloat16)
        weight = torch.randn(self.n, self.k, device="cuda", dtype=torch.bfloat16)
        return replay_us(lambda _: x @ weight.t(), 4)


def elementwise(hidden: int, width: int, rows: int) -> Iterator[tuple[str, float, float]]:
    """name, microseconds and bytes of the passes that make e4m3 rows."""
    x = torch.randn(rows, hidden, device="cuda", dtype=torch.bfloat16)
    residual, weight = torch.randn_like(x), torch.ones_like(x[0])
    gates = torch.randn(rows, 2 * width, device="cuda", dtype=torch.bfloat16)
    acted = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
    to = RowFormat("token")
    yield (
        "norm to fp8",
        replay_us(lambda _: fp8.norm(x, weight, 1e-5, to, residual=residual), 8),
        rows * hidden * 7,
    )
    yield (
        "norm",
        replay_us(lambda _: cuda.norm(x, weight, 1e-5, residual=residual), 8),
        rows * hidden * 8,
    )
    yield "act to fp8", replay_us(lambda _: fp8.act_and_mul(gates, "silu", to), 8), rows * width * 5
    yield "quantize", replay_us(lambda _: fp8.quantize(acted, to), 8), rows * width * 3
    yield "quantize hidden", replay_us(lambda _: fp8.quantize(x, to), 8), rows * hidden * 3


def kernels(rows: int, gated: bool) -> list[str]:
    """Which of ours take so many rows of x."""
    few = ["skinny"] if rows <= cuda.MAX_SKINNY_FP8_ROWS else []
    if rows > cuda.MAX_FP8_ROWS:
        return []
    return [*few, "gated"] if gated else [*few, "wide"]


def _sweep(product: Product, kernel: str, rows: int) -> Iterator[tuple[tuple[int, ...], float]]:
    for shape in launch_shapes(kernel, rows):
        with contextlib.suppress(RuntimeError):  # a gated product has fewer shapes
            yield shape, product.ours(rows, kernel, shape, to_groups=kernel == "gated")


def records(args: argparse.Namespace) -> Iterator[Record]:
    """All figures asked for."""
    shape = SHAPES[args.shape]
    for name, (n, k, gated) in matrices(shape).items():
        product = Product(n, k, gated)
        for rows in args.rows:
            limit = max(n * k / H100.read_gb_s / 1e3, 2 * rows * n * k / H100.fp8_tflop_s / 1e6)
            params: dict[str, Any] = {"n": n, "k": k, "rows": rows, "gated": gated}
            for kernel in kernels(rows, gated):
                label = f"{name} {rows} {kernel}"
                yield Record(label, params, product.ours(rows, kernel), "us", limit)
                if name != "qkv":
                    us = product.ours(rows, kernel, in_groups=not gated, to_groups=gated)
                    yield Record(f"{label}, groups", params, us, "us", limit)
                if not args.sweep:
                    continue
                times = dict(_sweep(product, kernel, rows))
                for launch in sorted(times, key=lambda s: times[s])[:4]:
                    what = params | {"launch": launch}
                    yield Record(f"{label} {launch}", what, times[launch], "us", limit)
            yield Record(f"{name} {rows} scaled_mm", params, product.scaled_mm(rows), "us", limit)
            if rows > 128:
                us = product.scaled_mm(rows, by_row=False)
                yield Record(f"{name} {rows} scaled_mm, one scale", params, us, "us", limit)
                yield Record(f"{name} {rows} bf16", params, product.bf16(rows), "us", limit)
    for rows in args.rows:
        for name, us, moved in elementwise(shape["hidden_size"], shape["intermediate_size"], rows):
            yield Record(f"{name} {rows}", {"rows": rows}, us, "us", moved / H100.read_gb_s / 1e3)


def main() -> None:
    """Measure and print."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--shape", choices=sorted(SHAPES), default="L8B")
    ap.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128, 8192])
    ap.add_argument("--sweep", action="store_true", help="try all launch shapes")
    ap.add_argument("--commit", help="commit to record where git is not at hand")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    out: list[Record] = []
    for record in records(args):
        print(record.row(), flush=True)
        out.append(record)
    if args.json:
        write(out, args.json, commit=args.commit)


if __name__ == "__main__":
    main()
