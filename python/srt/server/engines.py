"""The copies of the model behind a server: what they tell, and that all of them live."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from typing import Protocol

import msgspec

from srt.channel import EngineReady, EngineStats, ServerEnd, ToEngine
from srt.errors import EngineDead
from srt.server.generation import Sequence

_log = logging.getLogger("srt.server")


class EngineProcess(Protocol):
    """Something that runs an engine behind an endpoint."""

    async def exited(self) -> tuple[int, str]:
        """Returns when the process has ended: its exit code, and a sentence about it."""

    async def stop(self) -> None:
        """End the process if it still runs, and wait for its end."""


class Engine:
    """One copy of the model. living: its sequences of this HTTP worker, by id."""

    def __init__(self, process: EngineProcess, channel: ServerEnd) -> None:
        self.process = process
        self.channel = channel
        self.ready: EngineReady | None = None
        self.stats: EngineStats | None = None
        self.last_heard = time.monotonic()
        self.living: dict[int, Sequence] = {}
        self.num_long_calls = 0


class Engines:
    """All copies. They live and die together: the death of one is told once to all who wait.

    Attributes:
        died, death: set when one has died; why.
        on_death: called then, with the error that whoever waits is told.
        updating_elsewhere: HTTP workers at which weights are updated: silence is no hang then.
    """

    def __init__(self, copies: Seq[Engine], watchdog_timeout: float) -> None:
        self._copies = copies
        self._watchdog_timeout = watchdog_timeout
        self._all_ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.died = asyncio.Event()
        self.death: str | None = None
        self.on_death: list[Callable[[EngineDead], object]] = []
        self.updating_elsewhere: set[int] = set()

    def __len__(self) -> int:
        return len(self._copies)

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._copies)

    def __getitem__(self, index: int) -> Engine:
        return self._copies[index]

    @property
    def are_ready(self) -> bool:
        """Whether all can serve."""
        return self._all_ready.is_set()

    def watch(self) -> None:
        """From now on a process that ends, or says nothing for too long, is a death."""
        self._tasks += [asyncio.create_task(self._watch_process(engine)) for engine in self]
        self._tasks.append(asyncio.create_task(self._watch_progress()))

    async def unwatch(self) -> None:
        """Nobody's end matters any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def note_ready(self, engine: Engine, ready: EngineReady) -> None:
        """One copy can serve."""
        engine.ready = ready
        if all(one.ready is not None for one in self):
            self._all_ready.set()

    async def wait_ready(self) -> EngineReady:
        """What the engines can hold, when all can serve. Raises EngineDead."""
        dead = asyncio.create_task(self.died.wait())
        ready = asyncio.create_task(self._all_ready.wait())
        await asyncio.wait((dead, ready), return_when=asyncio.FIRST_COMPLETED)
        dead.cancel()
        ready.cancel()
        self.check_alive()
        found = [engine.ready for engine in self if engine.ready is not None]
        return msgspec.structs.replace(
            found[0],
            max_total_tokens=min(one.max_total_tokens for one in found),
            max_seq_len=min(one.max_seq_len for one in found),
        )

    def check_alive(self) -> None:
        """Raise EngineDead if an engine has died."""
        if self.death is not None:
            raise EngineDead(self.death)

    def die(self, why: str) -> None:
        """Every waiting client gets an error now; nothing is taken any more."""
        if self.death is not None:
            return
        self.death = why
        _log.error("engine died: %s", why)
        error = EngineDead(why)
        for tell in self.on_death:
            tell(error)
        self.died.set()

    def send(self, engine: Engine, record: ToEngine) -> None:
        """To a dead engine nothing is sent; the death is told to all, but never from in here."""
        if self.death is not None:
            return
        try:
            engine.channel.send(record)
        except BrokenPipeError as error:
            asyncio.get_running_loop().call_soon(self.die, str(error))

    def send_all(self, record: ToEngine) -> None:
        """Give a record that is not answered to every engine."""
        for engine in self:
            self.send(engine, record)

    @property
    def silence_s(self) -> float:
        """How long the quietest engine has said nothing, but for calls that take their time."""
        if self.updating_elsewhere:
            return 0.0
        now_s = time.monotonic()
        quiet = [now_s - e.last_heard for e in self if not e.num_long_calls]
        return max(quiet, default=0.0)

    def end_update_elsewhere(self, worker: int) -> None:
        """From now on silence counts again."""
        self.updating_elsewhere.discard(worker)
        for engine in self:
            engine.last_heard = time.monotonic()

    async def _watch_process(self, engine: Engine) -> None:
        _, how = await engine.process.exited()
        self.die(how)

    async def _watch_progress(self) -> None:
        """An engine that says nothing at all for `watchdog_timeout` is hung."""
        while True:
            await asyncio.sleep(min(1.0, self._watchdog_timeout / 4))
            for engine in self:
                silent = time.monotonic() - engine.last_heard
                if engine.num_long_calls or self.updating_elsewhere:
                    continue
                if engine.ready is not None and silent > self._watchdog_timeout:
                    self.die(f"the engine has been silent for {silent:.0f} s")
