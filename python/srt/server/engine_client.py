"""The server's side of the engines: deals out sequences and feeds their answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Any

import msgspec

from srt.channel import (
    AbortRequest,
    CallResult,
    EmbedRequest,
    EngineFailed,
    EngineReady,
    EngineStats,
    FromEngine,
    GenerateRequest,
    StepEvents,
    first_id,
)
from srt.config import Settings
from srt.errors import InvalidParameter, QueueFull, RequestError, ShuttingDown
from srt.server.arrival import current_arrival
from srt.server.crew import Crew
from srt.server.engine_calls import EngineCalls
from srt.server.engines import Engine, Engines
from srt.server.generation import Generation, Sequence
from srt.server.metrics import Metrics, WorkerTally
from srt.server.request_book import RequestBook, RequestRecord, record_of
from srt.types import FinishReason

_SHUTDOWN_S = 10.0
_log = logging.getLogger("srt.server")


class EngineClient:
    """All engines. Every sequence given to `submit` ends: with its answer, or with an error."""

    def __init__(
        self,
        engines: Engines,
        *,
        shortest_queue: bool,
        max_queued: int,
        metrics: Metrics | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.engines = engines
        self.metrics = metrics
        self.crew = crew or Crew()
        self.book = RequestBook()
        self._shortest_queue = shortest_queue
        self._max_queued = max_queued
        first = first_id(self.crew.worker, self.crew.life)
        self._seq_ids = itertools.count(first)
        self.calls = EngineCalls(engines, first)
        self._turns = itertools.count()
        self._by_request: dict[str, _Asked] = {}
        self._woken: dict[Generation, None] = {}  # with news since the last flush
        self.idle = asyncio.Event()
        self.idle.set()
        self.is_draining = False
        engines.on_death.append(self.cancel_all)

    @property
    def num_living(self) -> int:
        """Sequences that wait or run, for this HTTP worker or another."""
        return self.crew.num_elsewhere() + sum(len(engine.living) for engine in self.engines)

    def start(self) -> None:
        """Listen to the engines."""
        self.crew.answers("abort", self._answer_abort)
        self.crew.answers("metrics", self._answer_metrics)
        for engine in self.engines:
            engine.channel.listen(_Ear(self, engine))
        self.engines.watch()

    def submit(
        self,
        generation: Generation,
        requests: Seq[GenerateRequest | EmbedRequest],
        *,
        engine_index: int | None = None,
    ) -> None:
        """Start all sequences of a request, or none.

        Args:
            generation: the sequences, in the order of `requests`.
            requests: what the engine gets; seq_id is filled in here.
            engine_index: which copy; None: as the load balancing says.

        Raises:
            QueueFull, ShuttingDown, EngineDead, InvalidParameter (a request id that is in use).
        """
        self.engines.check_alive()
        if self.is_draining:
            raise ShuttingDown("the server is shutting down and takes no new requests")
        self.check_room(len(requests))
        for request_id in {sequence.request_id for sequence in generation.sequences}:
            if request_id in self._by_request:
                raise InvalidParameter(f"the request id {request_id!r} is in use", "rid")
        self.idle.clear()
        arrival, now_s = current_arrival(), time.monotonic()
        arrival.request_id = arrival.request_id or generation.sequences[0].request_id
        for sequence, request in zip(generation.sequences, requests, strict=True):
            chosen = self._choose() if engine_index is None else engine_index
            engine = self.engines[chosen]
            sequence.seq_id, sequence.engine = next(self._seq_ids), chosen
            sequence.arrived_s, sequence.submitted_s = arrival.at_s, now_s
            sequence.traceparent = arrival.traceparent
            engine.living[sequence.seq_id] = sequence
            self._by_request.setdefault(sequence.request_id, _Asked()).add(sequence)
            self.engines.send(engine, msgspec.structs.replace(request, seq_id=sequence.seq_id))
        self.crew.add_living(len(requests))

    def find_request(self, request_id: str) -> RequestRecord | None:
        """A request that runs, or that ended lately."""
        asked = self._by_request.get(request_id)
        if asked is not None:
            return record_of(request_id, asked.sequences, 0.0)
        return self.book.find(request_id)

    def cancel(self, sequences: Iterable[Sequence], error: RequestError | None = None) -> int:
        """End those that still run, at once: with ABORT, or with `error`. Returns how many."""
        running = [s for s in sequences if not s.finish and s.seq_id >= 0]
        self._tell_abort(running)
        for sequence in running:
            if error is None:
                sequence.feed(-1, FinishReason.ABORT)
            else:
                sequence.fail(error)
            self._forget(sequence)
            if sequence.generation is not None and sequence.generation.note(sequence):
                self._woken[sequence.generation] = None
        if self._woken:
            asyncio.get_running_loop().call_soon(self.flush)
        return len(running)

    def cancel_request(self, request_id: str) -> int:
        """Cancel by the client's name for it; returns how many sequences ended by it."""
        asked = self._by_request.get(request_id)
        return 0 if asked is None else self.cancel(asked.sequences)

    async def cancel_everywhere(self, request_id: str | None) -> int:
        """Cancel a request by its name (None: all there are), at whichever HTTP worker it is."""
        here = self.cancel_all() if request_id is None else self.cancel_request(request_id)
        elsewhere: list[int] = await self.crew.ask("abort", request_id)
        return here + sum(elsewhere)

    def tally(self) -> WorkerTally:
        """What this HTTP worker has counted; there must be metrics."""
        assert self.metrics is not None
        here = sum(len(engine.living) for engine in self.engines)
        return WorkerTally(self.crew.worker, self.metrics.tally(here))

    async def _answer_metrics(self, _: None) -> Any:
        return msgspec.to_builtins(self.tally())

    async def _answer_abort(self, request_id: str | None) -> int:
        return self.cancel_all() if request_id is None else self.cancel_request(request_id)

    def cancel_all(self, error: RequestError | None = None) -> int:
        """Cancel everything; returns how many sequences there were."""
        return self.cancel([s for e in self.engines for s in e.living.values()], error)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, let the living end; what is left after `timeout_s` is aborted."""
        self.is_draining = True
        try:
            await asyncio.wait_for(self.idle.wait(), timeout_s)
        except asyncio.TimeoutError:
            late = self.cancel_all(ShuttingDown("the server shut down before the answer was done"))
            _log.warning("shutdown: %d sequences did not end in %g s", late, timeout_s)

    async def close(self) -> None:
        """Stop listening and end the engines."""
        await self.engines.unwatch()
        if self.engines.death is None and self.engines.are_ready and self.crew.worker == 0:
            await self._shut_down()
        await asyncio.gather(*(engine.process.stop() for engine in self.engines))
        for engine in self.engines:
            engine.channel.close()

    async def _shut_down(self) -> None:
        """Ask the engines to end, and give them time to tell their other ranks."""
        self.calls.tell_all("shutdown")
        ends = asyncio.gather(*(engine.process.exited() for engine in self.engines))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ends, _SHUTDOWN_S)

    def check_room(self, count: int) -> None:
        """Raise QueueFull if so many sequences more are too many."""
        num_living = self.num_living
        running = sum(e.ready.max_running for e in self.engines if e.ready is not None)
        limit = running + self._max_queued
        if num_living + count > limit:
            if self.metrics is not None:
                self.metrics.count("num_queue_full_total")
            raise QueueFull(
                f"{num_living} sequences run or wait and {count} more were asked for; "
                f"the limit is {limit}"
            )

    def _choose(self) -> int:
        if self._shortest_queue:
            return min(range(len(self.engines)), key=lambda i: len(self.engines[i].living))
        return next(self._turns) % len(self.engines)

    def take(self, engine: Engine, record: FromEngine) -> None:
        """One record of one engine."""
        engine.last_heard = time.monotonic()
        if isinstance(record, StepEvents):
            self._take_events(engine, record)
        elif isinstance(record, EngineStats):
            engine.stats = record
        elif isinstance(record, CallResult):
            self.calls.take(record)
        elif isinstance(record, EngineReady):
            self.engines.note_ready(engine, record)
        elif isinstance(record, EngineFailed):
            self.engines.die(record.message)

    def flush(self) -> None:
        """Wake all requests with news."""
        woken, self._woken = self._woken, {}
        for generation in woken:
            generation.wake()

    def _take_events(self, engine: Engine, events: StepEvents) -> None:
        living, woken = engine.living, self._woken
        if self.metrics is not None:
            self.metrics.observe_events(events, living, engine.last_heard)
        self._take_details(engine, events)
        stopped: list[Sequence] = []
        previous = -1
        for seq_id, token, finish in zip(events.seq_ids, events.tokens, events.finish, strict=True):
            sequence = living.get(seq_id)
            if sequence is None:
                continue  # aborted; the engine had not heard of it yet
            if finish == FinishReason.ERROR:
                sequence.fail(InvalidParameter(events.errors.get(seq_id, "the engine refused it")))
            elif sequence.feed(token, finish):
                stopped.append(sequence)
            if seq_id == previous and token >= 0:
                sequence.num_jumped += 1
            previous = seq_id
            if sequence.finish:
                self._forget(sequence)
            generation = sequence.generation
            if generation is not None and generation.note(sequence):
                woken[generation] = None
        if stopped:
            self._tell_abort(stopped)

    def _take_details(self, engine: Engine, events: StepEvents) -> None:
        """What comes with some events beside their tokens."""
        for seq_id, cached in events.cached_tokens.items():
            if (sequence := engine.living.get(seq_id)) is not None:
                sequence.cached_tokens = cached
                sequence.first_token_s = engine.last_heard
        for seq_id, entries in events.logprobs.items():
            if (sequence := engine.living.get(seq_id)) is not None:
                for entry in entries:
                    sequence.feed_logprobs(entry)
        for seq_id, vector in events.embeddings.items():
            if (sequence := engine.living.get(seq_id)) is not None:
                sequence.embedding = vector

    def _tell_abort(self, sequences: Iterable[Sequence]) -> None:
        by_engine: dict[int, list[int]] = {}
        for sequence in sequences:
            by_engine.setdefault(sequence.engine, []).append(sequence.seq_id)
        for index, seq_ids in by_engine.items():
            self.engines.send(self.engines[index], AbortRequest(seq_ids))

    def _forget(self, sequence: Sequence) -> None:
        if self.engines[sequence.engine].living.pop(sequence.seq_id, None) is not None:
            self.crew.add_living(-1)
        if self.metrics is not None:
            self.metrics.observe_end(sequence, time.monotonic())
        asked = self._by_request[sequence.request_id]
        asked.num_living -= 1
        if not asked.num_living:
            del self._by_request[sequence.request_id]
            self.book.end(record_of(sequence.request_id, asked.sequences, time.monotonic()))
        if not self._by_request:
            self.idle.set()


def new_client(settings: Settings, engines: Seq[Engine], crew: Crew) -> EngineClient:
    """A client as the settings want it; it begins to listen with `start`."""
    return EngineClient(
        Engines(engines, settings.watchdog_timeout),
        shortest_queue=settings.load_balance_method == "shortest_queue",
        max_queued=settings.max_queued_requests,
        metrics=Metrics() if settings.enable_metrics else None,
        crew=crew,
    )


class _Asked:
    """All sequences, ended ones too, that a client asked for under one id."""

    __slots__ = ("num_living", "sequences")

    def __init__(self) -> None:
        self.sequences: list[Sequence] = []
        self.num_living = 0

    def add(self, sequence: Sequence) -> None:
        """One that lives."""
        self.sequences.append(sequence)
        self.num_living += 1


class _Ear:
    """Hears one engine for the client."""

    def __init__(self, client: EngineClient, engine: Engine) -> None:
        self._engine = engine
        self._client = client
        self.flush = client.flush
        self.fail = client.engines.die

    def take(self, record: FromEngine) -> None:
        """One record. A mistake of ours in here has lost somebody's token: nobody may go on."""
        try:
            self._client.take(self._engine, record)
        except Exception as error:  # noqa: BLE001
            _log.exception("a record of the engine could not be taken")
            self._client.engines.die(f"internal error: {type(error).__name__}")
