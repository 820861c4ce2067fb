"""The life of a server: engines up, warm, serving, draining, down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import uvicorn
import uvloop

from srt.channel import EngineReady, ServerEnd
from srt.config import Settings
from srt.errors import ConfigError, EngineDead
from srt.hub import HubOptions, resolve_model
from srt.server.app import create_app
from srt.server.connection import Connection
from srt.server.control import generate_on_all
from srt.server.engine_client import Engine, EngineClient, EngineProcess
from srt.server.metrics import Metrics
from srt.server.service import Service
from srt.text.chat import ChatFormat, choose_format
from srt.text.checkpoint_files import model_eos_ids
from srt.text.reply import ReplyFormat, choose_reply_format
from srt.text.sampling import Limits
from srt.text.tokenizer import Tokenizer, load_tokenizer

_log = logging.getLogger("srt.server")
_WARMUP_TOKENS = 8
_BACKLOG = 4096
# settings, dp rank, endpoint -> the running process
StartEngine = Callable[[Settings, int, str], Awaitable[EngineProcess]]


class HttpServer(uvicorn.Server):
    """uvicorn, with signals left to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: `Server` decides what a signal means."""
        yield


class Server:
    """One server. `run` returns the exit code."""

    def __init__(self, settings: Settings, start_engine: StartEngine) -> None:
        self._settings = settings
        self._start_engine = start_engine
        self._stop = asyncio.Event()
        self._http: HttpServer | None = None
        self.is_up = asyncio.Event()
        self.service: Service | None = None
        self.port = 0

    def request_stop(self) -> None:
        """Drain and end; asked a second time, end at once."""
        if self._stop.is_set() and self.service is not None:
            self.service.client.cancel_all()
        self._stop.set()

    async def run(self) -> int:
        """Serve until told to stop, or until an engine dies. Raises ConfigError, LoadError."""
        listener = _bind(self._settings.host, self._settings.port)
        with contextlib.closing(listener):
            self.port = listener.getsockname()[1]
            tokenizer, eos_ids = _load_text(self._settings)
            chat = choose_format(tokenizer, self._settings.chat_template) if tokenizer else None
            reply = _choose_reply(self._settings, chat)
            with tempfile.TemporaryDirectory(prefix="srt-") as folder:
                client = await self._start_engines(Path(folder))
                try:
                    ready = await self._until_ready(client)
                    if ready is None:
                        return 0
                    service = _service(self._settings, client, ready, tokenizer, chat, eos_ids)
                    service.reply_format = reply
                    self.service = service
                    return await self._serve(service, listener)
                except EngineDead as error:
                    _log.error("%s", error.message)
                    return 1
                finally:
                    await client.close()

    async def _start_engines(self, folder: Path) -> EngineClient:
        engines = []
        for dp_rank in range(self._settings.dp_size):
            endpoint = f"ipc://{folder}/engine{dp_rank}"
            channel = ServerEnd(endpoint)
            process = await self._start_engine(self._settings, dp_rank, endpoint)
            engines.append(Engine(process, channel))
        client = EngineClient(
            engines,
            shortest_queue=self._settings.load_balance_method == "shortest_queue",
            max_queued=self._settings.max_queued_requests,
            watchdog_timeout=self._settings.watchdog_timeout,
            metrics=Metrics(self._settings.model_name) if self._settings.enable_metrics else None,
        )
        client.start()
        return client

    async def _until_ready(self, client: EngineClient) -> EngineReady | None:
        """None if told to stop meanwhile. Raises EngineDead."""
        ready = asyncio.create_task(client.wait_ready())
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
        level = self._settings.log_level_http or self._settings.log_level
        config = uvicorn.Config(
            create_app(service),
            log_level=level,
            access_log=level in ("debug", "info"),
            log_config=None,
            timeout_keep_alive=65,
            timeout_graceful_shutdown=5,
            backlog=_BACKLOG,
            http=Connection,
            lifespan="off",
        )
        self._http = HttpServer(config)
        serving = asyncio.create_task(self._http.serve(sockets=[listener]))
        while not self._http.started and not serving.done():
            await asyncio.sleep(0.005)
        host = self._settings.host
        _log.info("listening on http://%s:%d", host, self.port)
        _log.info("The server is fired up and ready to roll!")
        self.is_up.set()
        service.batches.start()
        died = asyncio.create_task(service.client.died.wait())
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait((died, stop, serving), return_when=asyncio.FIRST_COMPLETED)
        await service.batches.close()
        if self._stop.is_set() and service.client.death is None:
            draining = asyncio.create_task(service.client.drain(self._settings.shutdown_timeout))
            await asyncio.wait((draining, died), return_when=asyncio.FIRST_COMPLETED)
        died.cancel()
        stop.cancel()
        self._http.should_exit = True
        await serving
        return 0 if service.client.death is None else 1


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


def _bind(host: str, port: int) -> socket.socket:
    """The port is taken now, so that a busy one is known before the model loads."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"--host {host} --port {port} cannot be used: {error}") from error
    return listener


def _load_text(settings: Settings) -> tuple[Tokenizer | None, tuple[int, ...]]:
    """The tokenizer, and the ids that end an answer."""
    options = HubOptions(
        revision=settings.revision,
        download_dir=settings.download_dir,
        use_modelscope=settings.use_modelscope,
        with_code=settings.trust_remote_code,
    )
    model = resolve_model(settings.model_path, options, with_weights=False)
    model_eos = model_eos_ids(model) if model.is_dir() else ()
    if settings.skip_tokenizer_init:
        return None, model_eos
    source = settings.tokenizer_source
    path = (
        model
        if source == settings.model_path
        else resolve_model(source, options, with_weights=False)
    )
    tokenizer = load_tokenizer(
        path, mode=settings.tokenizer_mode, trust_remote_code=settings.trust_remote_code
    )
    return tokenizer, tuple(dict.fromkeys((*model_eos, *tokenizer.eos_ids)))


def _choose_reply(settings: Settings, chat: ChatFormat | None) -> ReplyFormat:
    """How answers are split. Raises ConfigError."""
    source = chat.source if chat is not None else None
    found = choose_reply_format(settings.tool_call_parser, settings.reasoning_parser, source)
    for what, format_ in (("tool calls", found.tools), ("reasoning", found.reasoning)):
        if format_ is not None:
            _log.info("%s are read as %s", what, format_.name)
    return found


def _service(
    settings: Settings,
    client: EngineClient,
    ready: EngineReady,
    tokenizer: Tokenizer | None,
    chat: ChatFormat | None,
    eos_ids: tuple[int, ...],
) -> Service:
    if tokenizer is not None:
        tokenizer.cover(ready.vocab_size)
    limits = Limits(
        vocab_size=ready.vocab_size,
        max_seq_len=ready.max_seq_len,
        max_total_tokens=ready.max_total_tokens,
        eos_ids=tuple(i for i in eos_ids if i < ready.vocab_size),
    )
    return Service(settings, client, ready, limits, tokenizer, chat)


def _show_table(service: Service) -> None:
    table = list(service.ready.table)
    if service.tokenizer is not None:
        before, after = service.tokenizer.added_around()
        table.append(("tokens added to a prompt", " ".join((*before, "…", *after))))
    width = max((len(name) for name, _ in table), default=0)
    for name, value in table:
        _log.info("%s  %s", name.ljust(width), value)
