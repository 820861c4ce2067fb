"""The figures of a serving run: the rows that are printed, the record that is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srt.benchmark.load import Load, Traffic
from srt.text.tokenizer import Tokenizer

_WIDTH = 50


@dataclass(frozen=True, slots=True)
class Run:
    """What was run, for the record."""

    backend: str
    dataset: str
    traffic: Traffic


def figures(run: Run, load: Load, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """All figures by name; times in milliseconds. Failed requests count nowhere but in `failed`.

    Times of a request begin when it is sent; `client_queue` is what it waited for before.
    """
    outcomes, duration_s, traffic = load.outcomes, load.duration_s, run.traffic
    good = [outcome for outcome in outcomes if not outcome.error]
    num_in = sum(outcome.prompt_len for outcome in good)
    num_out = sum(outcome.output_len for outcome in good)
    retokenized = None
    if tokenizer is not None:
        encoded = (tokenizer.encode(o.text, add_special_tokens=False) for o in good)
        retokenized = sum(map(len, encoded))
    per_token = [
        (o.latency_s - o.first_token_s) / (o.output_len - 1) for o in good if o.output_len > 1
    ]
    return {
        "backend": run.backend,
        "dataset_name": run.dataset,
        "request_rate": traffic.request_rate if traffic.request_rate != float("inf") else "inf",
        "burstiness": traffic.burstiness,
        "max_concurrency": traffic.max_concurrency,
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "duration": duration_s,
        "total_input_tokens": num_in,
        "total_output_tokens": num_out,
        "total_output_tokens_retokenized": retokenized,
        "request_throughput": len(good) / duration_s,
        "input_throughput": num_in / duration_s,
        "output_throughput": num_out / duration_s,
        "total_throughput": (num_in + num_out) / duration_s,
        "mean_concurrency": sum(o.latency_s for o in good) / duration_s,
        **_spread("e2e_latency", [o.latency_s for o in good]),
        **_spread("ttft", [o.first_token_s for o in good]),
        **_spread("tpot", per_token),
        **_spread("itl", [gap for o in good for gap in o.gaps_s]),
        **_spread("client_queue", [o.queued_s for o in good]),
        **_spread("client_lag", load.lags_s),
    }


def rows(found: dict[str, Any]) -> list[str]:
    """The table, a line each."""
    lines = [" Serving Benchmark Result ".center(_WIDTH, "=")]

    def add(name: str, key: str, form: str = "") -> None:
        value = found[key]
        lines.append(f"{name:<40} {'n/a' if value is None else format(value, form):<10}")

    add("Backend:", "backend")
    add("Traffic request rate:", "request_rate")
    add("Burstiness of arrivals (1: Poisson):", "burstiness")
    add("Max request concurrency:", "max_concurrency")
    add("Successful requests:", "completed")
    add("Failed requests:", "failed")
    add("Benchmark duration (s):", "duration", ".2f")
    add("Total input tokens:", "total_input_tokens")
    add("Total generated tokens:", "total_output_tokens")
    add("Total generated tokens (retokenized):", "total_output_tokens_retokenized")
    add("Request throughput (req/s):", "request_throughput", ".2f")
    add("Input token throughput (tok/s):", "input_throughput", ".2f")
    add("Output token throughput (tok/s):", "output_throughput", ".2f")
    add("Total token throughput (tok/s):", "total_throughput", ".2f")
    add("Mean concurrency:", "mean_concurrency", ".2f")
    for title, name, key in (
        ("End-to-End Latency", "E2E Latency", "e2e_latency"),
        ("Time to First Token", "TTFT", "ttft"),
        ("Time per Output Token (excl. 1st token)", "TPOT", "tpot"),
        ("Inter-token Latency", "ITL", "itl"),
        ("Before the request was sent", "Client Queue", "client_queue"),
        ("Lateness of the client's event loop", "Client Lag", "client_lag"),
    ):
        lines.append(title.center(_WIDTH, "-"))
        add(f"Mean {name} (ms):", f"mean_{key}_ms", ".2f")
        add(f"Median {name} (ms):", f"median_{key}_ms", ".2f")
        add(f"P99 {name} (ms):", f"p99_{key}_ms", ".2f")
    lines.append("=" * _WIDTH)
    return lines


def _spread(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    if not seconds:
        return {f"{kind}_{name}_ms": None for kind in ("mean", "median", "p99", "std")}
    values = np.asarray(seconds) * 1000.0
    return {
        f"mean_{name}_ms": float(values.mean()),
        f"median_{name}_ms": float(np.median(values)),
        f"p99_{name}_ms": float(np.percentile(values, 99)),
        f"std_{name}_ms": float(values.std()),
    }
