"""Where a step's GPU time goes: kernels by name, and how long the device idles.

`python -m bench profile --shape Q05 --batch 1 --in 1024 --out 64` traces one run of a static
batch, after a warm-up, and prints the kernel tables of its prefill and of its decode steps.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.offline import parse_settings
from bench.shapes import SHAPES, write_shape
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


def main() -> None:
    """Trace one static batch."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--shape", choices=sorted(SHAPES), required=True)
    ap.add_argument("--batch", type=int, default=1)
    ap.add_argument("--in", type=int, default=1024, dest="n_in")
    ap.add_argument("--out", type=int, default=32, dest="n_out")
    ap.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="engine settings")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    rng = random.Random(0)

    def prompts() -> list[list[int]]:
        return [[rng.randint(10, 120000) for _ in range(args.n_in)] for _ in range(args.batch)]

    params = {"temperature": 0, "max_new_tokens": args.n_out, "ignore_eos": True}
    with tempfile.TemporaryDirectory() as folder:
        path = write_shape(args.shape, Path(folder))
        settings = parse_settings(args.set)
        with Engine(
            model_path=str(path), load_format="dummy", skip_tokenizer_init=True, **settings
        ) as engine:
            for _ in range(2):
                engine.generate(input_ids=prompts(), sampling_params=params)
            engine.flush_cache()
            engine.start_profile(folder)
            engine.generate(input_ids=prompts(), sampling_params=params)
            engine.stop_profile()
        spans = read_spans(Path(folder) / "rank0.json")
    # Decode steps are the last n_out - 1; what lies before the first of them is prefill.
    starts = [s.start_us for s in spans if "prepare" in s.name]
    cut = starts[-(args.n_out - 1)] if len(starts) >= args.n_out else spans[-1].end_us
    first = [s for s in spans if s.start_us < cut]
    rest = [s for s in spans if s.start_us >= cut]
    label = f"{args.shape} ({args.batch},{args.n_in},{args.n_out})"
    result = [
        table(f"{label} prefill", first, steps_of(first)),
        table(f"{label} decode", rest, steps_of(rest)),
    ]
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
