"""The HTTP workers beside the first, as it sees them: started, drained, started anew."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path

import msgspec

from srt.channel import EngineReady, module_command
from srt.config import Settings, settings_json
from srt.server.crew import SharedCrew
from srt.server.worker import UP, Start

_log = logging.getLogger("srt.server")
_GRACE_S = 10.0  # after the drain's own deadline
_SHORT_LIFE_S = 10.0  # who dies sooner would die again


class Workers:
    """Processes 1 to `http_workers - 1`. `lost`: set to a reason if they cannot be kept alive."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        listeners: list[socket.socket],
        crew: SharedCrew,
        on_gone: Callable[[int], object],
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._listeners = listeners  # of all workers, by number
        self._crew = crew
        self._on_gone = on_gone
        self._processes: dict[int, Process] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._ups = {worker: asyncio.Event() for worker in range(1, settings.http_workers)}
        self._ending = asyncio.Event()
        self.ready: EngineReady | None = None  # what a worker that starts anew is told
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def pids(self) -> dict[int, int]:
        """The processes by worker."""
        return {worker: process.pid for worker, process in self._processes.items()}

    def start(self) -> None:
        """Start and watch all."""
        self._tasks = [asyncio.create_task(self._keep(worker)) for worker in self._ups]

    async def up(self) -> None:
        """Returns when all answer, or one is lost."""
        ups = asyncio.gather(*(up.wait() for up in self._ups.values()))
        await asyncio.wait((ups, self.lost), return_when=asyncio.FIRST_COMPLETED)
        ups.cancel()

    def tell(self, order: str) -> None:
        """One line to every worker."""
        for process in self._processes.values():
            if process.stdin is not None and not process.stdin.is_closing():
                process.stdin.write(order.encode() + b"\n")

    def drain(self) -> None:
        """They take nothing new, finish what they have, and end."""
        self._ending.set()
        self.tell("drain")

    def die(self, why: str) -> None:
        """An engine has died: they tell their clients, and end."""
        self._ending.set()
        self.tell("die " + why.replace("\n", " "))

    async def close(self) -> None:
        """Wait for their ends, for as long as a drain may take; then kill."""
        if not self._ending.is_set():
            self.drain()
        ends = asyncio.gather(*self._tasks)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ends, self._settings.shutdown_timeout + _GRACE_S)
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, worker: int) -> None:
        life = 0
        while not self._ending.is_set():
            began_s = time.monotonic()
            code = await self._live(worker, life)
            self._crew.forget(worker)
            if self._ending.is_set():
                self._listeners[worker].close()  # or the kernel would go on dealing it connections
                return
            self._on_gone(worker)
            was_up, life = self._ups[worker].is_set(), life + 1
            how = f"HTTP worker {worker} ended with code {code}"
            if not was_up or time.monotonic() - began_s < _SHORT_LIFE_S:
                if not self.lost.done():
                    self.lost.set_result(how)
                return
            _log.error("%s; it is started anew", how)

    async def _live(self, worker: int, life: int) -> int:
        """One life of a worker, from start to end; the exit code."""
        listener = self._listeners[worker].fileno()
        start = Start(
            settings=settings_json(self._settings),
            worker=worker,
            life=life,
            folder=str(self._folder),
            listener_fd=listener,
            endpoints=[f"ipc://{self._folder}/engine{i}" for i in range(self._settings.dp_size)],
            ready=self.ready,
        )
        command, env = module_command("srt.server.worker")
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=PIPE, stdout=PIPE, env=env, pass_fds=(listener,), start_new_session=True,
        )  # fmt: skip
        self._processes[worker] = process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(start) + b"\n")
        if self._ending.is_set():
            self.tell("drain")
        if await process.stdout.readline() == UP:
            self._ups[worker].set()
        return await process.wait()
