"""What Prometheus reads at /metrics: load from heartbeats, latencies from the answers."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from collections.abc import Sequence as Seq

from srt.channel import EngineStats
from srt.server.generation import Sequence
from srt.types import FinishReason

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST_TOKEN_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6)
_PER_TOKEN_S = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)
_WHOLE_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)


class Histogram:
    """Counts by upper bound, as Prometheus wants them: cumulative, with a sum."""

    def __init__(self, name: str, text: str, bounds: Seq[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, labels: str) -> list[str]:
        """The exposition format."""
        shown = [f"# HELP {self._name} {self._text}", f"# TYPE {self._name} histogram"]
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            shown.append(f'{self._name}_bucket{{{labels},le="{bound}"}} {total}')
        shown.append(f"{self._name}_sum{{{labels}}} {self._sum}")
        shown.append(f"{self._name}_count{{{labels}}} {total}")
        return shown


class Metrics:
    """Figures since the start; `observe` is told of every sequence that ends."""

    def __init__(self, model_name: str) -> None:
        escaped = model_name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        self._labels = f'model_name="{escaped}"'
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0
        self._num_ended = dict.fromkeys(("stop", "length", "abort", "error"), 0)
        self._first_token = Histogram(
            "srt:time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN_S
        )
        self._per_token = Histogram(
            "srt:time_per_output_token_seconds", "Mean gap between tokens.", _PER_TOKEN_S
        )
        self._whole = Histogram(
            "srt:e2e_request_latency_seconds", "Arrival to last token.", _WHOLE_S
        )

    def observe(self, sequence: Sequence, now_s: float) -> None:
        """A sequence has ended, in whatever way."""
        self._num_ended[sequence.finish.name.lower()] += 1
        num_tokens = len(sequence.tokens)
        self._num_generated_tokens += num_tokens
        if sequence.first_token_s == 0.0:
            return  # it never ran
        self._num_prompt_tokens += len(sequence.prompt.input_ids)
        self._first_token.observe(sequence.first_token_s - sequence.arrived_s)
        if sequence.finish in (FinishReason.STOP, FinishReason.LENGTH):
            self._whole.observe(now_s - sequence.arrived_s)
            if num_tokens > 1:
                self._per_token.observe((now_s - sequence.first_token_s) / (num_tokens - 1))

    def render(self, stats: Iterable[EngineStats], num_living: int) -> str:
        """The whole page. stats: the last heartbeat of each engine."""
        found = list(stats)
        capacity = sum(one.max_total_tokens for one in found)
        used = sum(one.num_used_tokens for one in found)
        count = max(len(found), 1)
        gauges = (
            ("num_running_reqs", "Sequences in the step.", sum(s.num_running for s in found)),
            ("num_queue_reqs", "Sequences that wait.", sum(s.num_waiting for s in found)),
            ("num_living_reqs", "Sequences not yet answered.", num_living),
            ("num_used_tokens", "KV slots of running sequences.", used),
            ("num_cached_tokens", "KV slots of cached prefixes.",
             sum(s.num_cached_tokens for s in found)),
            ("token_usage", "Used share of the KV pool.", used / capacity if capacity else 0.0),
            ("gen_throughput", "Tokens per second.", sum(s.gen_throughput for s in found)),
            ("cache_hit_rate", "Share of prompt tokens found cached.",
             sum(s.cache_hit_rate for s in found) / count),
        )  # fmt: skip
        counters = (
            (
                "prompt_tokens_total",
                "Prompt tokens of sequences that ran.",
                self._num_prompt_tokens,
            ),
            ("generation_tokens_total", "Tokens generated.", self._num_generated_tokens),
            ("num_retracted_total", "Retractions.", sum(s.num_retracted for s in found)),
        )
        shown: list[str] = []
        for kind, rows in (("gauge", gauges), ("counter", counters)):
            for name, text, value in rows:
                shown += [f"# HELP srt:{name} {text}", f"# TYPE srt:{name} {kind}"]
                shown.append(f"srt:{name}{{{self._labels}}} {value}")
        shown += ["# HELP srt:num_requests_total Ended.", "# TYPE srt:num_requests_total counter"]
        for reason, ended in self._num_ended.items():
            shown.append(f'srt:num_requests_total{{{self._labels},finish="{reason}"}} {ended}')
        for histogram in (self._first_token, self._per_token, self._whole):
            shown += histogram.lines(self._labels)
        return "\n".join(shown) + "\n"
