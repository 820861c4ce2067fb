"""Sends requests at a rate, with a limit on how many run, and gathers what happened."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from srt.benchmark.backends import Backend, Options, Outcome, send
from srt.benchmark.datasets import Dialogue, Message, Request

_LAG_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Traffic:
    """How dialogues arrive.

    request_rate: mean arrivals per second; infinite: all at once. burstiness: shape of the gamma
    distribution of the gaps; 1: a Poisson process, less: bursts, more: regular. max_concurrency:
    requests that may run at once; arrivals wait for a place. None: any number.
    """

    request_rate: float = float("inf")
    burstiness: float = 1.0
    max_concurrency: int | None = None


@dataclass(slots=True)
class Load:
    """What came of a run. lags_s: how late the client's own event loop was, looked at every 50 ms:
    a client that is late measures itself."""

    outcomes: list[Outcome]
    duration_s: float
    lags_s: list[float] = field(default_factory=list)


async def run_load(
    backend: Backend,
    dialogues: Sequence[Dialogue],
    options: Options,
    traffic: Traffic,
    *,
    show_progress: bool,
) -> Load:
    """Runs every dialogue, turn by turn; outcomes in order, turns of one behind one another."""
    limit: contextlib.AbstractAsyncContextManager[object] = contextlib.nullcontext()
    if traffic.max_concurrency:
        limit = asyncio.Semaphore(traffic.max_concurrency)
    progress = tqdm(total=sum(map(len, dialogues)), disable=not show_progress)

    async def one(request: Request, due: float) -> Outcome:
        async with limit:
            queued_s = time.perf_counter() - due
            outcome = await send(backend, request, options)
        outcome.queued_s = max(0.0, queued_s)
        progress.update()
        return outcome

    async def all_turns(dialogue: Dialogue, due: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        history: list[Message] = []
        for turn in dialogue:
            outcomes.append(await one(_with_history(turn, history, backend), due))
            if outcomes[-1].error:
                rest = dialogue[len(outcomes) :]
                why = "an earlier turn failed"
                return outcomes + [Outcome(request.prompt_len, error=why) for request in rest]
            history += [
                {"role": "user", "content": str(turn.prompt)},
                {"role": "assistant", "content": outcomes[-1].text},
            ]
            due = time.perf_counter()
        return outcomes

    lags_s: list[float] = []
    watching = asyncio.create_task(_watch_lag(lags_s))
    start = time.perf_counter()
    tasks = [
        asyncio.create_task(all_turns(dialogue, due))
        async for dialogue, due in arrivals(dialogues, traffic)
    ]
    outcomes = [outcome for turns in await asyncio.gather(*tasks) for outcome in turns]
    elapsed = time.perf_counter() - start
    watching.cancel()
    progress.close()
    return Load(outcomes, elapsed, lags_s)


async def arrivals(
    dialogues: Sequence[Dialogue], traffic: Traffic
) -> AsyncIterator[tuple[Dialogue, float]]:
    """Each dialogue at its time, and that time; the client may be late."""
    due = time.perf_counter()
    rate, shape = traffic.request_rate, traffic.burstiness
    for dialogue in dialogues:
        yield dialogue, due
        if rate != float("inf"):
            due += random.gammavariate(shape, 1.0 / (rate * shape))
            await asyncio.sleep(max(0.0, due - time.perf_counter()))


def _with_history(turn: Request, history: list[Message], backend: Backend) -> Request:
    """A later turn says all that was said; a first turn is sent as it is."""
    if not history:
        return turn
    question = {"role": "user", "content": str(turn.prompt)}
    if backend.is_chat:
        return replace(turn, prompt=[*history, question])
    return replace(turn, prompt="\n".join(m["content"] for m in [*history, question]))


async def _watch_lag(lags_s: list[float]) -> None:
    while True:
        due = time.perf_counter() + _LAG_EVERY_S
        await asyncio.sleep(_LAG_EVERY_S)
        lags_s.append(max(0.0, time.perf_counter() - due))
