"""Where a step's GPU time goes: kernels by name, and how long the device idles.

`python -m bench profile --shape Q05 --batch 1 --in 1024 --out 64` traces one run of a static
batch, after a warm-up, and prints the kernel tables of its prefill and of its decode steps.
`--s2 512 --after 4 --span 0.5` traces half a second of the S2 run of 512 requests instead, from
its fourth second on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.offline import parse_settings, s2_requests
from bench.shapes import SHAPES, write_shape
from srt.errors import RequestError
from srt.llm import Engine


@dataclass(frozen=True, slots=True)
class Span:
    """One kernel or copy on the device, microseconds."""

    name: str
    start_us: float
    end_us: float


def read_spans(trace: Path) -> list[Span]:
    """The device's spans in a chrome trace, by start time."""
    events: list[dict[str, Any]] = json.loads(trace.read_text())["traceEvents"]
    spans = [
        Span(e["name"], e["ts"], e["ts"] + e["dur"])
        for e in events
        if e.get("cat") in {"kernel", "gpu_memcpy", "gpu_memset"}
    ]
    return sorted(spans, key=lambda s: s.start_us)


def busy_us(spans: Sequence[Span]) -> float:
    """Length of the union of the spans: overlapping kernels count once."""
    total, end = 0.0, float("-inf")
    for span in spans:
        total += max(0.0, span.end_us - max(span.start_us, end))
        end = max(end, span.end_us)
    return total


def short_name(name: str) -> str:
    """A kernel's name without return type, namespaces and arguments."""
    plain = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    head = plain.split("(", maxsplit=1)[0]
    return re.sub(r"\b(?:\w+::)+", "", head)[:90]


def table(title: str, spans: Sequence[Span], steps: int) -> dict[str, Any]:
    """Prints and returns one phase: busy and idle share, kernels by total time."""
    if not spans:
        return {"phase": title, "steps": 0}
    span_us = max(s.end_us for s in spans) - spans[0].start_us
    busy = busy_us(spans)
    groups: dict[str, list[float]] = defaultdict(list)
    for span in spans:
        groups[short_name(span.name)].append(span.end_us - span.start_us)
    print(f"{title}: {steps} steps, {span_us / steps:.1f} us each, idle {1 - busy / span_us:.1%}")
    rows = []
    for name, times in sorted(groups.items(), key=lambda g: -sum(g[1]))[:24]:
        row = {
            "kernel": name,
            "per_step": len(times) / steps,
            "us_each": sum(times) / len(times),
            "us_per_step": sum(times) / steps,
        }
        rows.append(row)
        count, each, total = row["per_step"], row["us_each"], row["us_per_step"]
        print(f"  {total:9.1f} us  {count:7.1f} x {each:8.2f} us  {name}")
    return {"phase": title, "steps": steps, "us": span_us, "idle": 1 - busy / span_us, "rows": rows}


def steps_of(spans: Sequence[Span]) -> int:
    """How many steps the spans hold: each runs one `prepare` kernel."""
    return max(1, sum("prepare" in s.name for s in spans))


def greedy(n_out: int) -> dict[str, Any]:
    """Sampling parameters of every workload."""
    return {"temperature": 0, "max_new_tokens": n_out, "ignore_eos": True}


def trace_static(engine: Engine, folder: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Traces one static batch: its prefill and its decode steps."""
    rng = random.Random(0)

    def prompts() -> list[list[int]]:
        return [[rng.randint(10, 120000) for _ in range(args.n_in)] for _ in range(args.batch)]

    for _ in range(2):
        engine.generate(input_ids=prompts(), sampling_params=greedy(args.n_out))
    engine.flush_cache()
    engine.start_profile(folder, with_host=args.with_host)
    engine.generate(input_ids=prompts(), sampling_params=greedy(args.n_out))
    engine.stop_profile()
    spans = read_spans(Path(folder) / "rank0.json")
    # Decode steps are the last n_out - 1; what lies before the first of them is prefill.
    starts = [s.start_us for s in spans if "prepare" in s.name]
    cut = starts[-(args.n_out - 1)] if len(starts) >= args.n_out > 1 else spans[-1].end_us
    first = [s for s in spans if s.start_us < cut]
    rest = [s for s in spans if s.start_us >= cut]
    label = f"{args.shape} ({args.batch},{args.n_in},{args.n_out})"
    return [
        table(f"{label} prefill", first, steps_of(first)),
        table(f"{label} decode", rest, steps_of(rest)),
    ]


def trace_window(engine: Engine, folder: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Traces `span` seconds of an S2 run, from its second `after` on."""
    prompts, outs = s2_requests(args.s2)
    params = [greedy(n) for n in outs]
    engine.generate(input_ids=prompts[:8], sampling_params=greedy(8))
    engine.flush_cache()

    def serve() -> None:
        with contextlib.suppress(RequestError):  # the engine is shut down before it is through
            engine.generate(input_ids=prompts, sampling_params=params)

    run = threading.Thread(target=serve)
    run.start()
    time.sleep(args.after)
    if not run.is_alive():
        raise RuntimeError(f"the run was over before second {args.after}")
    engine.start_profile(folder, with_host=args.with_host)
    time.sleep(args.span)
    engine.stop_profile()
    engine.shutdown()
    run.join()
    spans = read_spans(Path(folder) / "rank0.json")
    label = f"{args.shape} S2 {args.s2}, {args.span} s from second {args.after} on"
    return [table(label, spans, steps_of(spans))]


def main() -> None:
    """Trace one static batch, or a window of S2."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--shape", choices=sorted(SHAPES), required=True)
    ap.add_argument("--batch", type=int, default=1)
    ap.add_argument("--in", type=int, default=1024, dest="n_in")
    ap.add_argument("--out", type=int, default=32, dest="n_out")
    ap.add_argument("--s2", type=int, help="requests of an S2 run, instead of a static batch")
    ap.add_argument("--after", type=float, default=4.0, help="seconds of S2 before the trace")
    ap.add_argument("--span", type=float, default=0.3, help="seconds of S2 in the trace")
    ap.add_argument("--with-host", action="store_true", help="trace the host too, which slows it")
    ap.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="engine settings")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_shape(args.shape, Path(folder))
        settings = parse_settings(args.set)
        with Engine(
            model_path=str(path), load_format="dummy", skip_tokenizer_init=True, **settings
        ) as engine:
            trace = trace_static if args.s2 is None else trace_window
            result = trace(engine, folder, args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
