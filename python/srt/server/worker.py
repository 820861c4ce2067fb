"""One more HTTP worker: `python -m srt.server.worker`, started by the server's first process.

It reads a `Start` from its standard input, then lines: `drain`, `cancel` (end what still runs),
`die WHY`. When its standard input ends, the server is gone and so is the worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvloop

from srt.channel import EngineReady, ServerEnd, worker_endpoint
from srt.config import settings_from_json
from srt.server.crew import SharedCrew
from srt.server.engine_client import new_client
from srt.server.engines import Engine
from srt.server.front import TextRoom, serve_http

_EXIT_ORPHANED = 3
UP = b"up\n"  # on standard output, once it answers


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told at its start. endpoints: of the engines. ready: where it is known."""

    settings: str
    worker: int
    life: int
    folder: str
    listener_fd: int
    endpoints: list[str]
    ready: EngineReady | None


class ElsewhereEngine:
    """An engine process that the first worker watches."""

    async def exited(self) -> tuple[int, str]:
        """Never returns: the first worker tells of a death."""
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def stop(self) -> None:
        """The first worker does."""


def main() -> int:
    """Runs one worker to its end; returns the exit code."""
    start = msgspec.json.decode(sys.stdin.buffer.readline(), type=Start)
    settings = settings_from_json(start.settings)
    logging.basicConfig(
        level=settings.log_level.upper(),
        format=f"%(asctime)s %(levelname)s %(name)s [worker {start.worker}]: %(message)s",
        stream=sys.stderr,
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # the first worker tells when to drain
        signal.signal(number, signal.SIG_IGN)
    return uvloop.run(Worker(start).run())


class Worker:
    """Serves HTTP at the port that all workers share."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._settings = settings_from_json(start.settings)
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Until told to drain, or an engine dies; returns the exit code."""
        start = self._start
        listener = socket.socket(fileno=start.listener_fd)
        crew = SharedCrew(Path(start.folder), start.worker, self._settings.http_workers, start.life)
        engines = [
            Engine(ElsewhereEngine(), ServerEnd(worker_endpoint(endpoint, start.worker)))
            for endpoint in start.endpoints
        ]
        client = new_client(self._settings, engines, crew)
        if start.ready is not None:  # the engines said it to an earlier life of this worker
            for engine in engines:
                client.take(engine, start.ready)
        client.start()
        orders = asyncio.create_task(self._hear(client.engines.die, client.cancel_all))
        try:
            text = await asyncio.to_thread(TextRoom, self._settings)
            ready = await client.engines.wait_ready()
            for engine in engines:
                await engine.channel.connected()
            return await serve_http(text.service(client, ready), listener, self._stop, _tell_up)
        finally:
            orders.cancel()
            await client.close()
            crew.close()

    async def _hear(self, die: Callable[[str], object], cancel: Callable[[], object]) -> None:
        """The first worker's orders."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := (await reader.readline()).decode():
            order, _, rest = line.rstrip("\n").partition(" ")
            if order == "drain":
                self._stop.set()
            elif order == "cancel":
                cancel()
            elif order == "die":
                die(rest)
        os._exit(_EXIT_ORPHANED)


def _tell_up() -> None:
    sys.stdout.buffer.write(UP)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
