"""Host cost of the scheduler: steps under load, prefix match and insert, eviction.

`python -m bench scheduler [--json out.json]`. No device is needed; times are those of the calls
that the engine makes, binding included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from bench.record import Record, write
from srt.core import native

WARM_UP = 20


class Load:
    """A scheduler, its message buffer and a source of random prompts."""

    def __init__(self, *, num_tokens: int, max_running: int, step_tokens: int, page: int) -> None:
        self.config = native.SchedulerConfig(
            num_pages=num_tokens // page + 1,
            page_size=page,
            max_running=max_running,
            max_seq_len=1 << 17,
            max_step_tokens=step_tokens,
            max_prefill_tokens=step_tokens,
            init_new_token_ratio=0.0,
            min_new_token_ratio=0.0,
            clip_max_new_tokens=1,
        )
        self.scheduler = native.Scheduler(self.config)
        self.message = np.zeros(native.message_words(self.config), dtype=np.int32)
        self.random = np.random.default_rng(0)
        self.next_id = 0

    def prompt(self, length: int) -> np.ndarray:
        return self.random.integers(0, 128_000, length, dtype=np.int32)

    def add(self, tokens: np.ndarray, max_new_tokens: int) -> None:
        self.scheduler.add(self.next_id, tokens, max_new_tokens=max_new_tokens, temperature=0.0)
        self.next_id += 1

    def step(self) -> native.StepPlan | None:
        """One step as the engine runs it, without the device."""
        plan = self.scheduler.schedule(self.message)
        if plan is not None:
            self.scheduler.commit(plan.step, np.ones(plan.num_samples, dtype=np.int32))
            self.scheduler.drain_events()
        return plan

    def drain(self) -> None:
        while self.step() is not None:
            pass

    def fill_cache(self, num_tokens: int, length: int) -> None:
        for _ in range(num_tokens // length):
            self.add(self.prompt(length), 0)
        self.drain()


def microseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6


def record(name: str, params: dict[str, int], samples: list[float]) -> Record:
    return Record(name, params, median(samples), "us", samples=[round(s, 2) for s in samples])


def decode_steps(num_running: int, num_waiting: int, cached: int, page: int) -> list[Record]:
    """schedule() and commit() of a decode step while others wait and the cache is full."""
    load = Load(
        num_tokens=cached + num_running * 4096, max_running=num_running, step_tokens=8192, page=page
    )
    load.fill_cache(cached, 1000)
    for _ in range(num_running):
        load.add(load.prompt(256), 100_000)
    while load.scheduler.stats().num_waiting > 0:
        load.step()
    for _ in range(num_waiting):
        load.add(load.prompt(512), 64)
    times: dict[str, list[float]] = {"schedule": [], "commit": [], "step": []}
    for i in range(WARM_UP + 300):
        start = time.perf_counter()
        plan = load.scheduler.schedule(load.message)
        planned = time.perf_counter()
        assert plan is not None
        assert plan.num_decode == num_running
        tokens = np.ones(num_running, dtype=np.int32)
        committing = time.perf_counter()
        load.scheduler.commit(plan.step, tokens)
        committed = time.perf_counter()
        if i >= WARM_UP:
            times["schedule"].append((planned - start) * 1e6)
            times["commit"].append((committed - committing) * 1e6)
            times["step"].append((planned - start + committed - committing) * 1e6)
        load.scheduler.drain_events()
    params = {"running": num_running, "waiting": num_waiting, "cached": cached, "page_size": page}
    return [record(f"decode {name}, {num_running} rows", params, t) for name, t in times.items()]


def prefix_costs(length: int, page: int) -> list[Record]:
    """A prompt that the cache does not know (insert), then the same one again (match)."""
    load = Load(num_tokens=1 << 21, max_running=8, step_tokens=length, page=page)
    insert: list[float] = []
    match: list[float] = []
    for _ in range(15):
        tokens = load.prompt(length)
        for samples in (insert, match):
            load.add(tokens, 0)
            samples.append(microseconds(load.step))
    params = {"length": length, "page_size": page}
    return [
        record(f"insert {length} tokens, page {page}", params, insert),
        record(f"match {length} tokens, page {page}", params, match),
    ]


def eviction_costs(length: int, page: int) -> Record:
    """A prompt whose pages must all be evicted first, from a cache of 992-token leaves."""
    load = Load(num_tokens=1_000_000, max_running=8, step_tokens=length, page=page)
    load.fill_cache(1_100_000, 992)
    samples = []
    for _ in range(20):
        load.add(load.prompt(length), 0)
        samples.append(microseconds(load.step))
    assert load.scheduler.stats().num_evicted_pages >= 20 * (length // page), "nothing was evicted"
    params = {"length": length, "page_size": page, "cached": 1_000_000}
    return record(f"evict {length} tokens and insert, page {page}", params, samples)


def main() -> None:
    """Run every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=None, help="write the records here")
    args = parser.parse_args()
    records: list[Record] = []
    for page in (1, 16):
        records += decode_steps(256, 10_000, 1_000_000, page)
        for length in (1024, 8192, 65536):
            records += prefix_costs(length, page)
        records.append(eviction_costs(8192, page))
    for item in records:
        print(item.row())
    if args.json is not None:
        write(records, args.json)


if __name__ == "__main__":
    main()
