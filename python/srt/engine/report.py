"""What operators read: log lines on prefill, decode and retraction, and the heartbeat's figures."""

from __future__ import annotations

import logging
import time
from typing import Any

from srt.channel import EngineStats
from srt.core import native

log = logging.getLogger("srt.engine")

HEARTBEAT_S = 0.1  # between heartbeats of a busy engine, at least
WINDOW_S = 1.0  # throughput is taken over windows of at least this length


class Throughput:
    """Tokens per second over the last closed window."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._num_tokens = 0
        self._rate = 0.0

    def add(self, num_tokens: int) -> None:
        """So many tokens have just been generated."""
        self._num_tokens += num_tokens

    def rate(self, now: float, min_window_s: float = WINDOW_S) -> float:
        """Closes the window if it is long enough, and returns the last closed one's rate."""
        elapsed = now - self._begin
        if elapsed >= min_window_s:
            self._rate = self._num_tokens / elapsed
            self._begin, self._num_tokens = now, 0
        return self._rate


class Reporter:
    """Follows the steps of one engine; `quiet` ranks count but write no lines."""

    def __init__(
        self, scheduler: native.Scheduler, decode_log_interval: int, *, quiet: bool
    ) -> None:
        self._scheduler = scheduler
        self._interval = decode_log_interval
        self._quiet = quiet
        self._num_decodes = 0
        self._num_steps = 0
        self._ratio = scheduler.stats().new_token_ratio
        self._logged = Throughput()
        self._recent = Throughput()
        self._last_heartbeat = 0.0

    def on_plan(self, plan: native.StepPlan) -> None:
        """A step was planned."""
        self._num_steps += 1
        if plan.num_retracted:
            ratio = self._scheduler.stats().new_token_ratio
            if not self._quiet:
                log.warning(
                    "Decode out of memory happened. #retracted_reqs: %d, "
                    "#new_token_ratio: %.4f -> %.4f",
                    plan.num_retracted,
                    self._ratio,
                    ratio,
                )
            self._ratio = ratio
        if plan.num_extend_tokens and not self._quiet:
            self._log_prefill(plan)
        if plan.num_decode:
            self._num_decodes += 1
            if self._interval and self._num_decodes % self._interval == 0 and not self._quiet:
                self._log_decode()

    def on_tokens(self, num_tokens: int) -> None:
        """A step was committed and brought so many tokens."""
        self._logged.add(num_tokens)
        self._recent.add(num_tokens)

    def heartbeat_if_due(self) -> EngineStats | None:
        """A heartbeat, unless the last is recent."""
        if time.monotonic() - self._last_heartbeat < HEARTBEAT_S:
            return None
        return self.heartbeat()

    def heartbeat(self) -> EngineStats:
        """The figures of now."""
        now = self._last_heartbeat = time.monotonic()
        stats = self._scheduler.stats()
        self._ratio = stats.new_token_ratio
        return EngineStats(
            step=self._num_steps,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            num_used_tokens=stats.num_used_tokens,
            num_cached_tokens=stats.num_cached_tokens,
            max_total_tokens=stats.num_total_tokens,
            gen_throughput=self._recent.rate(now),
            cache_hit_rate=hit_rate(stats),
            num_retracted=stats.num_retracted,
            new_token_ratio=stats.new_token_ratio,
        )

    def _log_prefill(self, plan: native.StepPlan) -> None:
        stats = self._scheduler.stats()
        log.info(
            "Prefill batch. #new-seq: %d, #new-token: %d, #cached-token: %d, "
            "cache hit rate: %.2f%%, #running-req: %d, #queue-req: %d",
            plan.num_new_seqs,
            plan.num_extend_tokens,
            plan.num_cached_tokens,
            100.0 * hit_rate(stats),
            stats.num_running,
            stats.num_waiting,
        )

    def _log_decode(self) -> None:
        stats = self._scheduler.stats()
        log.info(
            "Decode batch. #running-req: %d, #token: %d, token usage: %.2f, "
            "gen throughput (token/s): %.2f, #queue-req: %d",
            stats.num_running,
            stats.num_used_tokens,
            stats.num_used_tokens / stats.num_total_tokens,
            self._logged.rate(time.monotonic(), 0.0),
            stats.num_waiting,
        )


def explain(trace: native.Trace | None) -> dict[str, Any] | None:
    """Where a sequence's time went, in milliseconds; what has not come yet runs until now."""
    if trace is None:
        return None
    now_us = time.monotonic_ns() // 1000
    end = trace.ended_us if trace.ended_us >= 0 else now_us
    admitted = trace.admitted_us if trace.admitted_us >= 0 else end
    first = trace.first_token_us if trace.first_token_us >= 0 else end
    requeued = trace.requeued_for_us + (end - trace.retracted_us if trace.retracted_us >= 0 else 0)
    return {
        "added_us": trace.added_us,
        "admitted_us": trace.admitted_us,
        "first_token_us": trace.first_token_us,
        "ended_us": trace.ended_us,
        "is_requeued": trace.retracted_us >= 0,
        "queue_ms": (admitted - trace.added_us) / 1000,
        "prefill_ms": (first - admitted) / 1000,
        "decode_ms": (end - first) / 1000,
        "requeued_ms": requeued / 1000,
        "total_ms": (end - trace.added_us) / 1000,
        "prompt_tokens": trace.num_prompt_tokens,
        "cached_tokens": trace.num_cached_tokens,
        "output_tokens": trace.num_output_tokens,
        "chunks": trace.num_chunks,
        "extend_tokens": trace.num_extend_tokens,
        "retractions": trace.num_retractions,
        "steps": trace.num_steps,
        "mean_batch": trace.sum_batch / max(1, trace.num_steps),
        "max_batch": trace.max_batch,
    }


def hit_rate(stats: native.SchedulerStats) -> float:
    """Share of all admitted prompt tokens that the prefix cache held."""
    return stats.num_prompt_cached_tokens / max(1, stats.num_prompt_tokens)
