"""Sends requests at a rate, with a limit on how many run, and gathers what happened."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence

from tqdm import tqdm

from srt.benchmark.backends import Backend, Options, Outcome, send
from srt.benchmark.datasets import Request


async def run_load(
    backend: Backend,
    requests: Sequence[Request],
    options: Options,
    *,
    request_rate: float,
    max_concurrency: int | None,
    show_progress: bool,
) -> tuple[list[Outcome], float]:
    """Outcomes in the order of `requests`, and the seconds from the first start to the last end.

    Args:
        request_rate: mean arrivals per second of a Poisson process; infinite: all at once.
        max_concurrency: requests that may run at once; arrivals wait for a place.
    """
    limit: contextlib.AbstractAsyncContextManager[object]
    limit = asyncio.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()
    progress = tqdm(total=len(requests), disable=not show_progress)

    async def one(request: Request) -> Outcome:
        async with limit:
            outcome = await send(backend, request, options)
        progress.update()
        return outcome

    start = time.perf_counter()
    tasks = [asyncio.create_task(one(r)) async for r in arrivals(requests, request_rate)]
    outcomes = await asyncio.gather(*tasks)
    elapsed = time.perf_counter() - start
    progress.close()
    return list(outcomes), elapsed


async def arrivals(requests: Sequence[Request], rate: float) -> AsyncIterator[Request]:
    """Each request at its time; the gaps of a Poisson process are exponential."""
    due = time.perf_counter()
    for request in requests:
        yield request
        if rate != float("inf"):
            due += random.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
