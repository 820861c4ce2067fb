"""The offline workloads S1 to S4 on random weights: batches, throughput, prefixes, long prompt.

`python -m bench offline --shape L8B --workloads S1 S2 --json out.json`; docs/performance.md
defines them. With `--fp8` they are S6: weights quantized while loading, fp8 KV.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.record import Record, write
from bench.roofline import H100, Ceilings, Model, decode_step_seconds, offline_seconds, seconds
from bench.shapes import SHAPES, write_shape
from srt.llm import Engine

S1_CASES = {
    "L8B": [(1, 1024, 256), (32, 256, 32), (32, 1024, 128), (128, 512, 128), (256, 512, 128)],
    "L1B": [(1, 1024, 256)],
    "Q05": [(1, 1024, 256)],
}


def s2_requests(n: int) -> tuple[list[list[int]], list[int]]:
    """The n prompts of S2, and how many tokens each wants."""
    rng = random.Random(0)
    prompts, outs = [], []
    for _ in range(n):
        n_in, n_out = rng.randint(100, 1024), rng.randint(100, 1024)
        prompts.append([rng.randint(10, 120000) for _ in range(n_in)])
        outs.append(n_out)
    return prompts, outs


@dataclass(frozen=True, slots=True)
class Bench:
    """One engine under test and the roofline of its model on its GPUs."""

    engine: Engine
    name: str
    model: Model
    chip: Ceilings
    fp8: bool
    repeat: int
    warmup: int

    def run(self, prompts: Sequence[list[int]], outs: Sequence[int]) -> float:
        """Seconds to serve all requests, greedy, eos ignored, radix cache emptied before."""
        self.engine.flush_cache()
        params = [{"temperature": 0, "max_new_tokens": n, "ignore_eos": True} for n in outs]
        start = time.perf_counter()
        results = self.engine.generate(input_ids=list(prompts), sampling_params=params)
        elapsed = time.perf_counter() - start
        produced = sum(r["meta_info"]["completion_tokens"] for r in results)
        if produced != sum(outs):
            raise RuntimeError(f"asked for {sum(outs)} tokens, got {produced}")
        return elapsed

    def times(self, make: Callable[[int], tuple[list[list[int]], list[int]]]) -> list[float]:
        """`repeat` timed runs, each on fresh random ids, after the untimed warm-ups."""
        for k in range(self.warmup):
            self.run(*make(-1 - k))
        return [self.run(*make(k)) for k in range(self.repeat)]

    def static(self, batch: int, n_in: int, n_out: int) -> list[Record]:
        """S1: prefill time, and the step time that the other tokens cost."""

        def ids(seed: int, outs: int) -> tuple[list[list[int]], list[int]]:
            rng = random.Random(seed * 7919 + outs)
            prompts = [[rng.randint(10, 120000) for _ in range(n_in)] for _ in range(batch)]
            return prompts, [outs] * batch

        first = self.times(lambda k: ids(k, 1))
        whole = self.times(lambda k: ids(k, n_out))
        prefill = statistics.median(first)
        step = (statistics.median(whole) - prefill) / (n_out - 1)
        contexts = [[n_in + i] * batch for i in range(1, n_out)]
        limits = [decode_step_seconds(self.model, self.chip, c, fp8=self.fp8) for c in contexts]
        prompt = seconds(
            self.model.step([n_in] * batch, [n_in] * batch, batch), self.chip, fp8=self.fp8
        )
        case = {"batch": batch, "in": n_in, "out": n_out, "shape": self.name}
        label = f"{self.name} S1 ({batch},{n_in},{n_out})"
        return [
            Record(f"{label} prefill", case, prefill * 1e3, "ms", prompt * 1e3, samples=first),
            Record(
                f"{label} step",
                case,
                step * 1e3,
                "ms",
                statistics.mean(limits) * 1e3,
                samples=whole,
            ),
        ]

    def throughput(self, n: int) -> Record:
        """S2: n requests of random lengths at once; output tokens per second."""

        prompts, outs = s2_requests(n)
        spans = self.times(lambda _: s2_requests(n))
        lens = [(len(p), o) for p, o in zip(prompts, outs, strict=True)]
        limit = sum(outs) / offline_seconds(self.model, self.chip, lens, fp8=self.fp8)
        value = sum(outs) / statistics.median(spans)
        return Record(
            f"{self.name} S2 {n}", {"requests": n}, value, "tok/s", limit, True, samples=spans
        )

    def shared_prefix(self) -> Record:
        """S3: 32 groups of 16 requests, 2048 shared + 128 private tokens in, 64 out."""

        def requests(seed: int) -> tuple[list[list[int]], list[int]]:
            rng = random.Random(seed)
            prompts = []
            for _g in range(32):
                prefix = [rng.randint(10, 120000) for _ in range(2048)]
                for _r in range(16):
                    prompts.append(prefix + [rng.randint(10, 120000) for _ in range(128)])
            rng.shuffle(prompts)
            return prompts, [64] * len(prompts)

        spans = self.times(requests)
        return Record(f"{self.name} S3", {}, statistics.median(spans), "s", samples=spans)

    def long_prompt(self) -> Record:
        """S4: time to the first token of one cold prompt of 32,768 tokens."""

        def request(seed: int) -> tuple[list[list[int]], list[int]]:
            rng = random.Random(seed)
            return [[rng.randint(10, 120000) for _ in range(32768)]], [1]

        spans = self.times(request)
        limit = seconds(self.model.step([32768], [32768], 1), self.chip, fp8=self.fp8)
        return Record(
            f"{self.name} S4 TTFT",
            {},
            statistics.median(spans) * 1e3,
            "ms",
            limit * 1e3,
            samples=spans,
        )


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words as engine settings: integers, floats, true and false are read as such."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, value = pair.split("=", 1)
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError:
            settings[key] = value
    return settings


def main() -> None:
    """Run the chosen workloads on one shape and write the records."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--shape", choices=sorted(SHAPES), required=True)
    ap.add_argument(
        "--workloads", nargs="+", choices=["S1", "S2", "S3", "S4"], default=["S1", "S2"]
    )
    ap.add_argument("--num-requests", type=int, nargs="+", default=[512], help="sizes of S2")
    ap.add_argument(
        "--cases", nargs="+", help="S1 cases as batch,in,out instead of the shape's own"
    )
    ap.add_argument("--repeat", type=int, default=3)
    ap.add_argument("--warmup", type=int, default=1, help="untimed runs before the timed ones")
    ap.add_argument("--fp8", action="store_true", help="fp8 weights and KV")
    ap.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="engine settings")
    ap.add_argument("--commit", help="commit to record where git is not at hand")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    settings = parse_settings(args.set)
    if args.fp8:
        settings |= {"quantization": "fp8", "kv_cache_dtype": "fp8_e5m2"}
    cases = S1_CASES[args.shape]
    if args.cases:
        cases = [tuple(map(int, case.split(","))) for case in args.cases]  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        path = write_shape(args.shape, Path(folder))
        start = time.perf_counter()
        engine = Engine(
            model_path=str(path), load_format="dummy", skip_tokenizer_init=True, **settings
        )
        ready = time.perf_counter() - start
        fp8_kv = str(settings.get("kv_cache_dtype", "")).startswith("fp8")
        model = Model.from_config(SHAPES[args.shape], fp8=args.fp8, fp8_kv=fp8_kv)
        num_gpus = settings.get("tp_size", 1)
        assert isinstance(num_gpus, int)
        chip = H100 if num_gpus == 1 else H100.times(num_gpus)
        bench = Bench(engine, args.shape, model, chip, args.fp8, args.repeat, args.warmup)
        records = [Record(f"{args.shape} start to ready", {}, ready, "s")]
        print(records[0].row(), flush=True)
        try:
            for record in _run(bench, args.workloads, cases, args.num_requests):
                if settings:
                    record.params["settings"] = settings
                records.append(record)
                print(record.row(), flush=True)
                if args.json:
                    write(records, args.json, commit=args.commit)
        finally:
            engine.shutdown()


def _run(
    bench: Bench,
    workloads: Sequence[str],
    cases: Sequence[tuple[int, int, int]],
    sizes: Sequence[int],
) -> Iterator[Record]:
    if "S1" in workloads:
        for case in cases:
            yield from bench.static(*case)
    if "S2" in workloads:
        for n in sizes:
            yield bench.throughput(n)
    if "S3" in workloads:
        yield bench.shared_prefix()
    if "S4" in workloads:
        yield bench.long_prompt()


if __name__ == "__main__":
    main()
