"""A blocking client of the engine processes, for use without HTTP; loads no torch."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Protocol

import msgspec
import zmq

from srt.channel import (
    AbortRequest,
    Call,
    CallResult,
    EmbedRequest,
    EngineFailed,
    EngineReady,
    GenerateRequest,
    SeqLogprobs,
    StepEvents,
    ToEngine,
    decode_from_engine,
    encode,
)
from srt.config import Settings
from srt.engine.launch import EngineProcess
from srt.errors import EngineDead, InternalServerError
from srt.types import FinishReason

POLL_MS = 200  # between looks at whether the client was closed


class Sink(Protocol):
    """Where news of one sequence goes; see StepEvents for what the arguments mean."""

    def __call__(
        self,
        seq_id: int,
        token: int,
        finish: int,
        cached_tokens: int,
        logprobs: SeqLogprobs | None,
        error: str | None,
        jumped: bool,
    ) -> None:
        """token: -1 for none. finish: a FinishReason. cached_tokens: -1 but at the first event.
        jumped: the token came with the step of the one before it."""


class EngineClient:
    """Starts all copies of the model, deals sequences out to them, and calls back with news.

    Sinks are called on the client's own thread, in order, and must return soon. Every submitted
    sequence's sink gets exactly one event with `finish` set, whatever happens to the engines.
    """

    def __init__(self, settings: Settings) -> None:
        self._folder = tempfile.mkdtemp(prefix="srt-")
        self._context = zmq.Context()
        self._lock = threading.Lock()  # over the out sockets, the sinks and the calls
        self._sinks: dict[int, tuple[int, Sink]] = {}
        self._calls: dict[int, tuple[int, Future[Any]]] = {}
        self._vectors: dict[int, bytes] = {}
        self._ids = itertools.count(1)
        self._failure: str | None = None
        self._closed = False
        self._ready: list[Future[EngineReady]] = [Future() for _ in range(settings.dp_size)]
        endpoints = [f"ipc://{self._folder}/dp{i}" for i in range(settings.dp_size)]
        self._out = [self._bind(zmq.PUSH, f"{e}.in") for e in endpoints]
        self._in = [self._bind(zmq.PULL, f"{e}.out") for e in endpoints]
        self._processes = [EngineProcess(settings, i, e) for i, e in enumerate(endpoints)]
        self._thread = threading.Thread(target=self._listen, name="srt-client", daemon=True)
        self._thread.start()

    def wait_ready(self) -> list[EngineReady]:
        """Returns when all engines can serve. Raises EngineDead with what one of them said."""
        try:
            return [future.result() for future in self._ready]
        except BaseException:
            self.close(drain=False)
            raise

    @property
    def pids(self) -> list[int]:
        """The process ids of the copies' first ranks."""
        return [process.pid for process in self._processes]

    def submit(self, requests: Sequence[tuple[GenerateRequest | EmbedRequest, Sink]]) -> list[int]:
        """Starts sequences together; their `seq_id`s are given here and returned."""
        frames: list[list[bytes]] = [[] for _ in self._out]
        seq_ids = []
        with self._lock:
            if self._failure is not None:
                raise EngineDead(self._failure)
            for request, sink in requests:
                seq_id = next(self._ids)
                copy = seq_id % len(self._out)
                self._sinks[seq_id] = (copy, sink)
                frames[copy].append(encode(msgspec.structs.replace(request, seq_id=seq_id)))
                seq_ids.append(seq_id)
            for socket, parts in zip(self._out, frames, strict=True):
                if parts:
                    socket.send_multipart(parts)  # arrives as a whole, so they start together
        return seq_ids

    def take_vector(self, seq_id: int) -> bytes:
        """An embedded sequence's vector, once, when its sink has been told of its end."""
        return self._vectors.pop(seq_id)

    def send_all(self, record: ToEngine) -> None:
        """Gives a record that is not answered to every copy."""
        with self._lock:
            for copy in range(len(self._out)):
                self._send(copy, record)

    def abort(self, seq_ids: Sequence[int]) -> None:
        """Asks for sequences' ends; their terminal events still come. Ended ones are fine."""
        with self._lock:
            for seq_id in seq_ids:
                if seq_id in self._sinks:
                    self._send(self._sinks[seq_id][0], AbortRequest([seq_id]))

    def call(self, method: str, timeout_s: float | None = 60.0, **args: Any) -> list[Any]:
        """Calls all copies; their payloads. Raises InternalServerError with what one said."""
        raw = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in args.items()}
        futures = []
        with self._lock:
            if self._failure is not None:
                raise EngineDead(self._failure)
            for copy in range(len(self._out)):
                call_id, future = next(self._ids), Future[Any]()
                self._calls[call_id] = (copy, future)
                self._send(copy, Call(call_id=call_id, method=method, args=raw))
                futures.append(future)
        return [future.result(timeout_s) for future in futures]

    def close(self, *, drain: bool = True, timeout_s: float = 60.0) -> None:
        """Ends the engines, letting sequences finish first if `drain`. May be called twice."""
        if self._closed:
            return
        if self._failure is None and all(f.done() for f in self._ready):
            try:
                self.call("shutdown", timeout_s, drain=drain)
                for process in self._processes:
                    process.wait(timeout_s)
            except (EngineDead, InternalServerError, FutureTimeoutError):
                pass  # what cannot end by itself is ended below
        self._closed = True
        self._thread.join()
        for process in self._processes:
            process.stop()
        self._fail("the engine was shut down")
        self._context.destroy(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _bind(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.set_hwm(0)
        socket.bind(endpoint)
        return socket

    def _send(self, copy: int, record: ToEngine) -> None:
        self._out[copy].send(encode(record))

    def _listen(self) -> None:
        """The client's thread: every record from every copy, until the client is closed."""
        poller = zmq.Poller()
        for socket in self._in:
            poller.register(socket, zmq.POLLIN)
        for process in self._processes:
            poller.register(process.sentinel, zmq.POLLIN)
        while not self._closed:
            ready = dict(poller.poll(POLL_MS))
            for copy, socket in enumerate(self._in):
                if socket in ready:
                    self._take_all(copy, socket)
            for process in self._processes:
                if process.sentinel in ready:
                    poller.unregister(process.sentinel)
                    self._fail(process.death() or "an engine process is gone")

    def _take_all(self, copy: int, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                data = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(copy, data)

    def _take(self, copy: int, data: bytes) -> None:
        record = decode_from_engine(data)
        if isinstance(record, StepEvents):
            self._deal_out(record)
        elif isinstance(record, CallResult):
            _, future = self._calls.pop(record.call_id)
            if record.ok:
                future.set_result(msgspec.msgpack.decode(record.payload))
            else:
                future.set_exception(InternalServerError(record.message))
        elif isinstance(record, EngineReady):
            self._ready[copy].set_result(record)
        elif isinstance(record, EngineFailed):
            self._fail(record.message)

    def _deal_out(self, events: StepEvents) -> None:
        cached, logprobs, errors = events.cached_tokens, events.logprobs, events.errors
        self._vectors.update((i, v) for i, v in events.embeddings.items() if i in self._sinks)
        has_more = bool(cached or logprobs or errors)
        rows = zip(events.seq_ids, events.tokens, events.finish, strict=True)
        previous = -1
        for seq_id, token, finish in rows:
            jumped, previous = seq_id == previous, seq_id
            entry = self._sinks.get(seq_id)
            if entry is None:
                continue  # failed together with another copy
            sink = entry[1]
            if finish:
                with self._lock:
                    del self._sinks[seq_id]
            if has_more:
                entries = logprobs.get(seq_id)
                more = entries.pop(0) if entries else None, errors.get(seq_id)
                sink(seq_id, token, finish, cached.pop(seq_id, -1), *more, jumped)
            else:
                sink(seq_id, token, finish, -1, None, None, jumped)

    def _fail(self, message: str) -> None:
        """Everyone who waits for anything is told; the first message stays."""
        with self._lock:
            self._failure = self._failure or message
            message = self._failure
            sinks, self._sinks = self._sinks, {}
            calls, self._calls = self._calls, {}
        for seq_id, (_, sink) in sinks.items():
            sink(seq_id, -1, FinishReason.ERROR, -1, None, message, False)
        waiting: list[Future[Any]] = [future for _, future in calls.values()]
        for future in [*waiting, *self._ready]:
            if not future.done():
                future.set_exception(EngineDead(message))
