"""The HTTP side of one process: the text room it loads, the port it answers, how it drains."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator

import uvicorn

from srt.channel import EngineReady
from srt.config import Settings
from srt.errors import ConfigError
from srt.hub import HubOptions, resolve_model
from srt.server.app import create_app
from srt.server.connection import Connection
from srt.server.engine_client import EngineClient
from srt.server.observe import observing
from srt.server.service import Service
from srt.server.upkeep import join_updates
from srt.text.chat import ChatFormat, choose_format
from srt.text.checkpoint_files import model_eos_ids
from srt.text.grammar_checker import GrammarChecker, open_checker, vocabulary_of
from srt.text.reply import ReplyFormat, choose_reply_format
from srt.text.sampling import Limits
from srt.text.tokenizer import Tokenizer, load_tokenizer

_log = logging.getLogger("srt.server")
_BACKLOG = 4096


class HttpServer(uvicorn.Server):
    """uvicorn, with signals left to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: `Server` decides what a signal means."""
        yield


class TextRoom:
    """What a process needs to turn text into ids and back; loaded before the engines are ready."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.tokenizer, self._eos_ids = _load_text(settings)
        self.chat: ChatFormat | None = None
        if self.tokenizer is not None:
            self.chat = choose_format(self.tokenizer, settings.chat_template)
        self._reply = _choose_reply(settings, self.chat)

    def service(self, client: EngineClient, ready: EngineReady) -> Service:
        """What the routes work with, now that the engines' limits are known."""
        if self.tokenizer is not None:
            self.tokenizer.cover(ready.vocab_size)
        limits = Limits(
            vocab_size=ready.vocab_size,
            max_seq_len=ready.max_seq_len,
            max_total_tokens=ready.max_total_tokens,
            eos_ids=tuple(i for i in self._eos_ids if i < ready.vocab_size),
        )
        service = Service(
            self._settings, client, ready, limits, self.tokenizer, self.chat, self._reply
        )
        service.grammars = _open_grammars(service)
        return service


def _open_grammars(service: Service) -> GrammarChecker | None:
    """What compiles grammars first; the engines are told the vocabulary."""
    tokenizer, eos_ids, settings = service.tokenizer, service.limits.eos_ids, service.settings
    is_wanted = service.ready.is_generation and settings.grammar_backend != "none"
    if tokenizer is None or not eos_ids or not is_wanted:
        return None
    vocabulary = vocabulary_of(tokenizer, eos_ids)
    service.client.engines.send_all(vocabulary)
    return open_checker(vocabulary, service.limits.vocab_size, settings)


async def serve_http(
    service: Service, listener: socket.socket, stop: asyncio.Event, on_up: Callable[[], object]
) -> int:
    """Answer requests until told to stop, and drain then; or until an engine dies.

    Returns the exit code: 1 if an engine died.
    """
    settings = service.settings
    level = settings.log_level_http or settings.log_level
    config = uvicorn.Config(
        create_app(service),
        log_level=level,
        access_log=level in ("debug", "info"),
        log_config=None,
        timeout_keep_alive=65,
        timeout_graceful_shutdown=5,
        backlog=_BACKLOG,
        http=Connection,
        ssl_keyfile=settings.ssl_keyfile,
        ssl_certfile=settings.ssl_certfile,
        lifespan="off",
    )
    join_updates(service)
    async with observing(service):
        return await _serve_until(service, HttpServer(config), listener, stop, on_up)


async def _serve_until(
    service: Service,
    http: HttpServer,
    listener: socket.socket,
    stop: asyncio.Event,
    on_up: Callable[[], object],
) -> int:
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    while not http.started and not serving.done():
        await asyncio.sleep(0.005)
    on_up()
    service.batches.start()
    died = asyncio.create_task(service.client.engines.died.wait())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((died, stopped, serving), return_when=asyncio.FIRST_COMPLETED)
    service.client.is_draining = True  # nothing new, while batches are put by
    await service.batches.close()
    if stop.is_set() and service.client.engines.death is None:
        draining = asyncio.create_task(service.client.drain(service.settings.shutdown_timeout))
        await asyncio.wait((draining, died), return_when=asyncio.FIRST_COMPLETED)
    died.cancel()
    stopped.cancel()
    http.should_exit = True
    await serving
    if service.grammars is not None:
        await asyncio.to_thread(service.grammars.close)
    return 0 if service.client.engines.death is None else 1


def bind(host: str, port: int, num_workers: int) -> list[socket.socket]:
    """One socket a worker, all at one port: the kernel deals connections out among them.

    The port is taken now, so that a busy one is known before the model loads. Raises ConfigError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound: list[socket.socket] = []
    try:
        if num_workers > 1:  # a shared port can be taken twice: see first that nobody has it
            with _bound(family, host, port, is_shared=False) as probe:
                port = probe.getsockname()[1]
        for _ in range(num_workers):
            bound.append(_bound(family, host, port, is_shared=num_workers > 1))
    except OSError as error:
        for one in bound:
            one.close()
        raise ConfigError(f"--host {host} --port {port} cannot be used: {error}") from error
    return bound


def _bound(family: int, host: str, port: int, *, is_shared: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
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
