"""What Prometheus reads at /metrics: load from heartbeats, latencies from the answers."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import msgspec
import psutil

from srt.channel import EngineStats, StepEvents
from srt.server.generation import Sequence
from srt.server.metric_names import ALIASES, COUNTERS, GAUGES, HISTOGRAMS, PER_WORKER
from srt.types import FinishReason

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ENDS = tuple(reason.name.lower() for reason in FinishReason if reason)


class HistogramState(msgspec.Struct):
    """Counts by upper bound (the last: above all), and the sum of what was observed."""

    counts: list[int]
    sum: float = 0.0


class Tally(msgspec.Struct):
    """All that one HTTP worker has counted since its start; workers' tallies add up."""

    counters: dict[str, float]
    ended: dict[str, int]
    histograms: dict[str, HistogramState]
    num_living: int = 0
    process: dict[str, float] = {}

    @classmethod
    def empty(cls) -> Tally:
        """Nothing counted yet."""
        return cls(
            counters=dict.fromkeys(COUNTERS, 0),
            ended=dict.fromkeys(_ENDS, 0),
            histograms={
                name: HistogramState([0] * (len(bounds) + 1))
                for name, (_, bounds) in HISTOGRAMS.items()
            },
        )

    def add(self, other: Tally) -> None:
        """Count what another worker has counted."""
        for name, count in other.counters.items():
            self.counters[name] += count
        for reason, number in other.ended.items():
            self.ended[reason] += number
        for name, state in other.histograms.items():
            mine = self.histograms[name]
            mine.sum += state.sum
            mine.counts = [a + b for a, b in zip(mine.counts, state.counts, strict=True)]
        self.num_living += other.num_living


class WorkerTally(msgspec.Struct):
    """Whose tally it is."""

    worker: int
    tally: Tally


class Metrics:
    """Counts of this process; told of every step's events and of every sequence that ends."""

    def __init__(self) -> None:
        self._tally = Tally.empty()
        self._bounds = {name: bounds for name, (_, bounds) in HISTOGRAMS.items()}

    def count(self, name: str, number: float = 1) -> None:
        """Add to one of COUNTERS."""
        self._tally.counters[name] += number

    def observe_events(
        self, events: StepEvents, living: Mapping[int, Sequence], now_s: float
    ) -> None:
        """One step's news, before the sequences are fed. O(events)."""
        gaps: dict[float, int] = {}
        for seq_id in events.seq_ids:
            sequence = living.get(seq_id)
            if sequence is not None:
                gaps[sequence.last_token_s] = gaps.get(sequence.last_token_s, 0) + 1
                sequence.last_token_s = now_s
        gaps.pop(0.0, None)  # first tokens
        for last_s, number in gaps.items():
            self._observe("inter_token_latency_seconds", now_s - last_s, number)
        for queued_us in events.queued_us.values():
            self._observe("queue_time_seconds", queued_us * 1e-6)
        num_none = events.tokens.count(-1)
        self._tally.counters["generation_tokens_total"] += len(events.tokens) - num_none

    def observe_end(self, sequence: Sequence, now_s: float) -> None:
        """A sequence has ended, in whatever way."""
        self._tally.ended[sequence.finish.name.lower()] += 1
        if sequence.first_token_s == 0.0:
            return  # it never ran
        num_prompt, num_tokens = len(sequence.prompt.input_ids), len(sequence.tokens)
        self.count("prompt_tokens_total", num_prompt)
        self.count("cached_tokens_total", sequence.cached_tokens)
        self._observe("time_to_first_token_seconds", sequence.first_token_s - sequence.arrived_s)
        if sequence.finish in (FinishReason.STOP, FinishReason.LENGTH):
            self._observe("e2e_request_latency_seconds", now_s - sequence.arrived_s)
            self._observe("request_prompt_tokens", num_prompt)
            self._observe("request_generation_tokens", num_tokens)
            if num_tokens > 1:
                per_token_s = (now_s - sequence.first_token_s) / (num_tokens - 1)
                self._observe("time_per_output_token_seconds", per_token_s)

    def tally(self, num_living: int) -> Tally:
        """All of it, now."""
        process = psutil.Process()
        times = process.cpu_times()
        self._tally.num_living = num_living
        self._tally.process = {
            "resident_memory_bytes": process.memory_info().rss,
            "cpu_seconds_total": times.user + times.system,
        }
        return self._tally

    def _observe(self, name: str, value: float, number: int = 1) -> None:
        state = self._tally.histograms[name]
        state.counts[bisect.bisect_left(self._bounds[name], value)] += number
        state.sum += value * number


@dataclass
class Page:
    """The text that Prometheus reads. labels: on every sample. with_aliases: other servers' names
    beside ours."""

    labels: str
    with_aliases: bool
    lines: list[str] = field(default_factory=list)

    def add(self, name: str, kind: str, text: str, samples: Seq[tuple[str, str, float]]) -> None:
        """One family. samples: (what follows the name, further labels, value)."""
        aliases = ALIASES.get(name, ()) if self.with_aliases else ()
        for shown in (f"srt:{name}", *aliases):
            self.lines += [f"# HELP {shown} {text}", f"# TYPE {shown} {kind}"]
            for suffix, labels, value in samples:
                both = f"{self.labels},{labels}" if labels else self.labels
                self.lines.append(f"{shown}{suffix}{{{both}}} {value}")


def render(
    model_name: str,
    tallies: Mapping[int, Tally],
    stats: Iterable[EngineStats],
    *,
    with_aliases: bool,
) -> str:
    """The whole page. tallies: by HTTP worker. stats: the last heartbeat of each engine."""
    escaped = model_name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    page = Page(f'model_name="{escaped}"', with_aliases)
    found = list(stats)
    total = Tally.empty()
    for tally in tallies.values():
        total.add(tally)
    total.counters["num_retracted_total"] = sum(one.num_retracted for one in found)
    total.counters["num_aborted_requests_total"] = total.ended["abort"]
    for name, value in _gauges(found, total.num_living).items():
        page.add(name, "gauge", GAUGES[name], [("", "", value)])
    for name, text in COUNTERS.items():
        page.add(name, "counter", text, [("", "", total.counters[name])])
    ends = [("", f'finish="{reason}"', number) for reason, number in total.ended.items()]
    page.add("num_requests_total", "counter", "Sequences that ended, by how.", ends)
    if with_aliases:
        _add_vllm_success(page, total)
    for name, (text, bounds) in HISTOGRAMS.items():
        page.add(name, "histogram", text, _buckets(bounds, total.histograms[name]))
    for name, (kind, text) in PER_WORKER.items():
        by_worker = [("", f'worker="{w}"', t.process.get(name, 0)) for w, t in tallies.items()]
        page.add(f"process_{name}", kind, text, by_worker)
    return "\n".join(page.lines) + "\n"


def _add_vllm_success(page: Page, total: Tally) -> None:
    """vLLM's name has a label of its own."""
    name, text = "vllm:request_success_total", "Sequences that ended, by how."
    page.lines += [f"# HELP {name} {text}", f"# TYPE {name} counter"]
    for reason in ("stop", "length", "abort"):
        labels = f'{page.labels},finished_reason="{reason}"'
        page.lines.append(f"{name}{{{labels}}} {total.ended[reason]}")


def _gauges(found: Seq[EngineStats], num_living: int) -> dict[str, float]:
    capacity = sum(one.max_total_tokens for one in found)
    used = sum(one.num_used_tokens for one in found)
    count = max(len(found), 1)
    return {
        "num_running_reqs": sum(one.num_running for one in found),
        "num_queue_reqs": sum(one.num_waiting for one in found),
        "num_living_reqs": num_living,
        "num_used_tokens": used,
        "num_cached_tokens": sum(one.num_cached_tokens for one in found),
        "max_total_num_tokens": capacity,
        "token_usage": used / capacity if capacity else 0.0,
        "gen_throughput": sum(one.gen_throughput for one in found),
        "cache_hit_rate": sum(one.cache_hit_rate for one in found) / count,
        "new_token_ratio": sum(one.new_token_ratio for one in found) / count,
    }


def _buckets(bounds: Seq[float], state: HistogramState) -> list[tuple[str, str, float]]:
    samples: list[tuple[str, str, float]] = []
    total = 0
    for bound, count in zip((*bounds, "+Inf"), state.counts, strict=True):
        total += count
        samples.append(("_bucket", f'le="{bound}"', total))
    return [*samples, ("_sum", "", state.sum), ("_count", "", total)]
