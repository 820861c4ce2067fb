"""The server's side of the engines: deals out sequences, feeds their answers, notices a death."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Any, Protocol

import msgspec

from srt.channel import (
    AbortRequest,
    Call,
    CallResult,
    EmbedRequest,
    EngineFailed,
    EngineReady,
    EngineStats,
    FromEngine,
    GenerateRequest,
    ServerEnd,
    StepEvents,
    ToEngine,
    first_id,
)
from srt.config import Settings
from srt.errors import EngineDead, InvalidParameter, QueueFull, RequestError, ShuttingDown
from srt.server.arrival import current_arrival
from srt.server.crew import Crew
from srt.server.generation import Generation, Sequence
from srt.server.metrics import Metrics, WorkerTally
from srt.server.request_book import RequestBook, RequestRecord, record_of
from srt.types import FinishReason

_SHUTDOWN_S = 10.0
_log = logging.getLogger("srt.server")


class EngineProcess(Protocol):
    """Something that runs an engine behind an endpoint."""

    async def exited(self) -> tuple[int, str]:
        """Returns when the process has ended: its exit code, and a sentence about it."""

    async def stop(self) -> None:
        """End the process if it still runs, and wait for its end."""


class Engine:
    """One copy of the model."""

    def __init__(self, process: EngineProcess, channel: ServerEnd) -> None:
        self.process = process
        self.channel = channel
        self.ready: EngineReady | None = None
        self.stats: EngineStats | None = None
        self.last_heard = time.monotonic()
        self.living: dict[int, Sequence] = {}
        self.num_long_calls = 0


class EngineClient:
    """All engines. Every sequence given to `submit` ends: with its answer, or with an error."""

    def __init__(
        self,
        engines: Seq[Engine],
        *,
        shortest_queue: bool,
        max_queued: int,
        watchdog_timeout: float,
        metrics: Metrics | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.engines = engines
        self.metrics = metrics
        self.crew = crew or Crew()
        self.book = RequestBook()
        self._shortest_queue = shortest_queue
        self._max_queued = max_queued
        self._watchdog_timeout = watchdog_timeout
        first = first_id(self.crew.worker, self.crew.life)
        self._seq_ids = itertools.count(first)
        self._call_ids = itertools.count(first)
        self._turns = itertools.count()
        self._calls: dict[int, asyncio.Future[CallResult]] = {}
        self._by_request: dict[str, _Asked] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._woken: dict[Generation, None] = {}  # with news since the last flush
        self.idle = asyncio.Event()
        self.idle.set()
        self._all_ready = asyncio.Event()
        self.died = asyncio.Event()
        self.death: str | None = None
        self.is_draining = False
        self.updating_elsewhere: set[int] = set()  # HTTP workers at which weights are updated

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
            self._tasks.append(asyncio.create_task(self._watch_process(engine)))
        self._tasks.append(asyncio.create_task(self._watch_progress()))

    async def wait_ready(self) -> EngineReady:
        """What the engines can hold, when all can serve. Raises EngineDead."""
        dead = asyncio.create_task(self.died.wait())
        ready = asyncio.create_task(self._all_ready.wait())
        await asyncio.wait((dead, ready), return_when=asyncio.FIRST_COMPLETED)
        dead.cancel()
        ready.cancel()
        self.check_alive()
        found = [engine.ready for engine in self.engines if engine.ready is not None]
        return msgspec.structs.replace(
            found[0],
            max_total_tokens=min(one.max_total_tokens for one in found),
            max_seq_len=min(one.max_seq_len for one in found),
        )

    def check_alive(self) -> None:
        """Raise EngineDead if an engine has died."""
        if self.death is not None:
            raise EngineDead(self.death)

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
        self.check_alive()
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
            self._send(engine, msgspec.structs.replace(request, seq_id=sequence.seq_id))
        self.crew.add_living(len(requests))

    def find_request(self, request_id: str) -> RequestRecord | None:
        """A request that runs, or that ended lately."""
        asked = self._by_request.get(request_id)
        if asked is not None:
            return record_of(request_id, asked.sequences, 0.0)
        return self.book.find(request_id)

    def send_all(self, record: ToEngine) -> None:
        """Give a record that is not answered to every engine."""
        for engine in self.engines:
            self._send(engine, record)

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

    @property
    def silence_s(self) -> float:
        """How long the quietest engine has said nothing, but for calls that take their time."""
        if self.updating_elsewhere:
            return 0.0
        now_s = time.monotonic()
        quiet = [now_s - e.last_heard for e in self.engines if not e.num_long_calls]
        return max(quiet, default=0.0)

    def end_update_elsewhere(self, worker: int) -> None:
        """From now on silence counts again."""
        self.updating_elsewhere.discard(worker)
        for engine in self.engines:
            engine.last_heard = time.monotonic()

    async def _answer_metrics(self, _: None) -> Any:
        return msgspec.to_builtins(self.tally())

    async def _answer_abort(self, request_id: str | None) -> int:
        return self.cancel_all() if request_id is None else self.cancel_request(request_id)

    def cancel_all(self, error: RequestError | None = None) -> int:
        """Cancel everything; returns how many sequences there were."""
        return self.cancel([s for e in self.engines for s in e.living.values()], error)

    async def call(
        self, method: str, timeout_s: float | None = 30.0, **args: Any
    ) -> list[CallResult]:
        """Ask every engine; see `call_one`."""
        everyone = range(len(self.engines))
        calls = [self.call_one(index, method, timeout_s, **args) for index in everyone]
        return await asyncio.gather(*calls)

    async def call_one(
        self, index: int, method: str, timeout_s: float | None = 30.0, **args: Any
    ) -> CallResult:
        """Ask one engine. Raises EngineDead if it is dead, or silent for `timeout_s` (None: never).

        A call without timeout may keep the engine from stepping: until its end silence is no hang.
        """
        self.check_alive()
        engine = self.engines[index]
        call_id = next(self._call_ids)
        self._calls[call_id] = asyncio.get_running_loop().create_future()
        engine.num_long_calls += timeout_s is None
        raw = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in args.items()}
        self._send(engine, Call(call_id=call_id, method=method, args=raw))
        try:
            return await asyncio.wait_for(self._calls[call_id], timeout_s)
        except asyncio.TimeoutError as error:
            raise EngineDead(f"the engine did not answer {method} in {timeout_s:g} s") from error
        finally:
            if timeout_s is None:
                engine.num_long_calls -= 1
                engine.last_heard = time.monotonic()

    def tell_all(self, method: str, **args: Any) -> None:
        """Ask every engine for something whose answer does not matter."""
        raw = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in args.items()}
        for engine in self.engines:
            self._send(engine, Call(call_id=next(self._call_ids), method=method, args=raw))

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
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.death is None and self._all_ready.is_set() and self.crew.worker == 0:
            await self._shut_down()
        await asyncio.gather(*(engine.process.stop() for engine in self.engines))
        for engine in self.engines:
            engine.channel.close()

    async def _shut_down(self) -> None:
        """Ask the engines to end, and give them time to tell their other ranks."""
        self.tell_all("shutdown")
        ends = asyncio.gather(*(engine.process.exited() for engine in self.engines))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ends, _SHUTDOWN_S)

    def die(self, why: str) -> None:
        """Every waiting client gets an error now; nothing is taken any more."""
        if self.death is not None:
            return
        self.death = why
        _log.error("engine died: %s", why)
        error = EngineDead(why)
        self.cancel_all(error)
        for call in self._calls.values():
            if not call.done():
                call.set_exception(error)
        self.died.set()

    def _send(self, engine: Engine, record: ToEngine) -> None:
        """To a dead engine nothing is sent; the death is told to all, but never from in here."""
        if self.death is not None:
            return
        try:
            engine.channel.send(record)
        except BrokenPipeError as error:
            asyncio.get_running_loop().call_soon(self.die, str(error))

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
            waiting = self._calls.pop(record.call_id, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(record)
        elif isinstance(record, EngineReady):
            engine.ready = record
            if all(e.ready is not None for e in self.engines):
                self._all_ready.set()
        elif isinstance(record, EngineFailed):
            self.die(record.message)

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
            self._send(self.engines[index], AbortRequest(seq_ids))

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

    async def _watch_process(self, engine: Engine) -> None:
        _, how = await engine.process.exited()
        self.die(how)

    async def _watch_progress(self) -> None:
        """An engine that says nothing at all for `watchdog_timeout` is hung."""
        while True:
            await asyncio.sleep(min(1.0, self._watchdog_timeout / 4))
            for engine in self.engines:
                silent = time.monotonic() - engine.last_heard
                if engine.num_long_calls or self.updating_elsewhere:
                    continue
                if engine.ready is not None and silent > self._watchdog_timeout:
                    self.die(f"the engine has been silent for {silent:.0f} s")


def new_client(settings: Settings, engines: Seq[Engine], crew: Crew) -> EngineClient:
    """A client as the settings want it; it begins to listen with `start`."""
    return EngineClient(
        engines,
        shortest_queue=settings.load_balance_method == "shortest_queue",
        max_queued=settings.max_queued_requests,
        watchdog_timeout=settings.watchdog_timeout,
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
        self.fail = client.die

    def take(self, record: FromEngine) -> None:
        """One record. A mistake of ours in here has lost somebody's token: nobody may go on."""
        try:
            self._client.take(self._engine, record)
        except Exception as error:  # noqa: BLE001
            _log.exception("a record of the engine could not be taken")
            self._client.die(f"internal error: {type(error).__name__}")
