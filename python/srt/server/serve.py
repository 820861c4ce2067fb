"""The life of a server: engines up, warm, serving, draining, down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from srt.channel import EngineReady, ServerEnd
from srt.config import Settings
from srt.errors import EngineDead
from srt.server.control import generate_on_all
from srt.server.crew import Crew, SharedCrew
from srt.server.engine_client import EngineClient, new_client
from srt.server.engines import Engine, EngineProcess
from srt.server.front import TextRoom, bind, serve_http
from srt.server.observe import check_observers
from srt.server.service import Service
from srt.server.workers import Workers
from srt.text.grammar_checker import check_settings

_log = logging.getLogger("srt.server")
_WARMUP_TOKENS = 8
# settings, dp rank, endpoint -> the running process
StartEngine = Callable[[Settings, int, str], Awaitable[EngineProcess]]


class Server:
    """One server. `run` returns the exit code.

    This process is the first HTTP worker, and alone answers for the engines and other workers.
    """

    def __init__(self, settings: Settings, start_engine: StartEngine) -> None:
        self._settings = settings
        self._start_engine = start_engine
        self._stop = asyncio.Event()
        self._workers: Workers | None = None
        self.is_up = asyncio.Event()
        self.service: Service | None = None
        self.port = 0

    def request_stop(self) -> None:
        """Drain and end; asked a second time, end at once."""
        if self._stop.is_set() and self.service is not None:
            self.service.client.cancel_all()
            if self._workers is not None:
                self._workers.tell("cancel")
        self._stop.set()

    async def run(self) -> int:
        """Serve until told to stop, or until an engine dies. Raises ConfigError, LoadError."""
        settings = self._settings
        check_observers(settings)
        check_settings(settings)
        with contextlib.ExitStack() as stack:
            listeners = bind(settings.host, settings.port, settings.http_workers)
            for listener in listeners:
                stack.callback(listener.close)
            self.port = listeners[0].getsockname()[1]
            text = TextRoom(settings)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="srt-")))
            client = await self._start_engines(folder)
            try:
                return await self._run(client, text, folder, listeners)
            except EngineDead as error:
                _log.error("%s", error.message)
                return 1
            finally:
                await self._end_workers(client)
                await client.close()
                client.crew.close()

    async def _run(
        self, client: EngineClient, text: TextRoom, folder: Path, listeners: list[socket.socket]
    ) -> int:
        self._start_workers(folder, listeners, client)
        ready = await self._until_ready(client)
        if ready is None:
            return 0
        self.service = text.service(client, ready)
        return await self._serve(self.service, listeners[0])

    async def _start_engines(self, folder: Path) -> EngineClient:
        engines = []
        for dp_rank in range(self._settings.dp_size):
            endpoint = f"ipc://{folder}/engine{dp_rank}"
            channel = ServerEnd(endpoint)
            process = await self._start_engine(self._settings, dp_rank, endpoint)
            engines.append(Engine(process, channel))
        num_workers = self._settings.http_workers
        crew = SharedCrew(folder, 0, num_workers) if num_workers > 1 else Crew()
        client = new_client(self._settings, engines, crew)
        client.start()
        return client

    def _start_workers(
        self, folder: Path, listeners: list[socket.socket], client: EngineClient
    ) -> None:
        if not isinstance(client.crew, SharedCrew):
            return

        def on_gone(worker: int) -> None:
            client.calls.tell_all("forget_worker", worker=worker)

        self._workers = Workers(self._settings, folder, listeners, client.crew, on_gone)
        self._workers.lost.add_done_callback(lambda lost: client.engines.die(lost.result()))
        self._workers.start()

    async def _end_workers(self, client: EngineClient) -> None:
        if self._workers is None:
            return
        if client.engines.death is not None:
            self._workers.die(client.engines.death)
        await self._workers.close()

    async def _until_ready(self, client: EngineClient) -> EngineReady | None:
        """None if told to stop meanwhile. Raises EngineDead."""
        ready = asyncio.create_task(client.engines.wait_ready())
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait((ready, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if ready.done():
            return ready.result()
        ready.cancel()
        return None

    async def _serve(self, service: Service, listener: socket.socket) -> int:
        _show_table(service)
        if not self._settings.skip_warmup:
            await generate_on_all(service, _WARMUP_TOKENS)
        if self._workers is not None:
            self._workers.ready = service.ready
            await self._workers.up()
            service.client.engines.check_alive()
        stopping = asyncio.create_task(self._drain_workers())
        try:
            return await serve_http(service, listener, self._stop, self._tell_up)
        finally:
            stopping.cancel()

    async def _drain_workers(self) -> None:
        await self._stop.wait()
        if self._workers is not None:
            self._workers.drain()

    def _tell_up(self) -> None:
        scheme = "https" if self._settings.ssl_certfile else "http"
        _log.info("listening on %s://%s:%d", scheme, self._settings.host, self.port)
        _log.info("The server is fired up and ready to roll!")
        self.is_up.set()


class Follower:
    """A node that only lends its GPUs: no HTTP, one engine process that meets those of node 0."""

    def __init__(self, settings: Settings, start_engine: StartEngine) -> None:
        self._settings = settings
        self._start_engine = start_engine
        self._stop = asyncio.Event()

    def request_stop(self) -> None:
        """End the engine process."""
        self._stop.set()

    async def run(self) -> int:
        """Lend until told to stop, or until the engine process ends as node 0 tells it to."""
        with tempfile.TemporaryDirectory(prefix="srt-") as folder:
            process = await self._start_engine(self._settings, 0, f"ipc://{folder}/engine0")
            ended = asyncio.create_task(process.exited())
            stop = asyncio.create_task(self._stop.wait())
            await asyncio.wait((ended, stop), return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            if not ended.done():
                ended.cancel()
                await process.stop()
                return 0
            code, how = ended.result()
            _log.info("%s", how)
            return 0 if code == 0 else 1


def serve(settings: Settings, start_engine: StartEngine) -> int:
    """Run this node in this process until SIGTERM or SIGINT; returns the exit code."""

    async def main() -> int:
        kind = Server if settings.node_rank == 0 else Follower
        node = kind(settings, start_engine)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, node.request_stop)
        return await node.run()

    return uvloop.run(main())


def _show_table(service: Service) -> None:
    table = list(service.ready.table)
    if service.tokenizer is not None:
        before, after = service.tokenizer.added_around()
        table.append(("tokens added to a prompt", " ".join((*before, "…", *after))))
    width = max((len(name) for name, _ in table), default=0)
    for name, value in table:
        _log.info("%s  %s", name.ljust(width), value)
