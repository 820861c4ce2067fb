"""The HTTP workers of one server: who they are, how much each has, what they ask of each other.

Every worker talks to the engines by itself. What concerns all of them (aborting a request that
another worker has, adding up metrics) goes over local sockets between each two.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import mmap
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

_log = logging.getLogger("srt.server")
_TIMEOUT_S = 5.0
_WORD = 8  # bytes

Answerer = Callable[[Any], Awaitable[Any]]


class _Ask(msgspec.Struct, frozen=True, kw_only=True, tag="ask"):
    """A question; `worker` wants to know."""

    worker: int
    ask_id: int
    method: str
    arg: Any


class _Answer(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """Its answer; `ok` is false where the asked worker failed."""

    ask_id: int
    ok: bool
    value: Any


_decoder: msgspec.msgpack.Decoder[_Ask | _Answer] = msgspec.msgpack.Decoder(_Ask | _Answer)


class Crew:
    """A server of one process: there is nobody else."""

    worker = 0
    life = 0
    num_workers = 1

    def num_elsewhere(self) -> int:
        """Sequences that live at other workers."""
        return 0

    def add_living(self, count: int) -> None:
        """So many sequences more live here."""

    def answers(self, method: str, answerer: Answerer) -> None:
        """How this worker answers the others."""

    async def ask(self, method: str, arg: Any = None) -> list[Any]:  # noqa: ARG002
        """What the other workers answer, those that do."""
        return []

    def close(self) -> None:
        """Leave."""


class SharedCrew(Crew):
    """One of several workers, which meet in `folder`; worker 0 comes first and makes the files."""

    def __init__(self, folder: Path, worker: int, num_workers: int, life: int = 0) -> None:
        self.worker = worker
        self.num_workers = num_workers
        self.life = life
        self._counts = _shared_words(folder / "living", num_workers, create=worker == 0)
        self._counts[worker] = 0
        self._answerers: dict[str, Answerer] = {}
        self._asked: dict[int, tuple[asyncio.Future[list[Any]], list[Any]]] = {}
        self._ask_ids = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = zmq.Context()
        self._in = self._context.socket(zmq.PULL)
        self._in.bind(f"ipc://{folder}/worker{worker}")
        self._outs = {
            other: self._connected(f"ipc://{folder}/worker{other}")
            for other in range(num_workers)
            if other != worker
        }
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._in.fileno(), self._drain)
        self._loop.call_soon(self._drain)

    def num_elsewhere(self) -> int:
        """Sequences that live at other workers."""
        return sum(self._counts) - self._counts[self.worker]

    def add_living(self, count: int) -> None:
        """So many sequences more live here."""
        self._counts[self.worker] += count

    def forget(self, worker: int) -> None:
        """That worker is gone, and its sequences with it."""
        self._counts[worker] = 0

    def answers(self, method: str, answerer: Answerer) -> None:
        """How this worker answers the others."""
        self._answerers[method] = answerer

    async def ask(self, method: str, arg: Any = None) -> list[Any]:
        """What the other workers answer; who fails or is silent for 5 s is left out, and logged."""
        ask_id = next(self._ask_ids)
        done, got = self._loop.create_future(), list[Any]()
        self._asked[ask_id] = (done, got)
        ask = _Ask(worker=self.worker, ask_id=ask_id, method=method, arg=arg)
        for out in self._outs.values():
            out.send(msgspec.msgpack.encode(ask))
        try:
            await asyncio.wait_for(done, _TIMEOUT_S)
        except asyncio.TimeoutError:
            _log.warning("%d of %d workers answered %s", len(got), len(self._outs), method)
        finally:
            del self._asked[ask_id]
        return [answer.value for answer in got if answer.ok]

    def close(self) -> None:
        """Leave."""
        self._loop.remove_reader(self._in.fileno())
        for task in self._tasks:
            task.cancel()
        self._context.destroy(linger=0)

    def _connected(self, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUSH)
        socket.connect(endpoint)
        return socket

    def _drain(self) -> None:
        if self._context.closed:
            return
        while True:
            try:
                record = _decoder.decode(self._in.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            if isinstance(record, _Ask):
                task = self._loop.create_task(self._answer(record))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif record.ask_id in self._asked:
                done, got = self._asked[record.ask_id]
                got.append(record)
                if len(got) == len(self._outs) and not done.done():
                    done.set_result(got)

    async def _answer(self, ask: _Ask) -> None:
        ok, value = True, None
        try:
            value = await self._answerers[ask.method](ask.arg)
        except Exception:  # noqa: BLE001 (the asker is told, the log has it all)
            _log.exception("worker %d asked %s", ask.worker, ask.method)
            ok = False
        answer = _Answer(ask_id=ask.ask_id, ok=ok, value=value)
        self._outs[ask.worker].send(msgspec.msgpack.encode(answer))


def _shared_words(path: Path, count: int, *, create: bool) -> memoryview:
    """`count` 64-bit integers that all workers see."""
    if create:
        path.write_bytes(bytes(count * _WORD))
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), count * _WORD)).cast("q")
