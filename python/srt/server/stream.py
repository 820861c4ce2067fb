"""Server-sent events, and noticing that the client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from srt.errors import RequestError
from srt.server.answers import error_body, internal_error
from srt.server.connection import Connection, connection_of
from srt.server.generation import Generation, Sequence

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def event(value: Any) -> bytes:
    """One SSE event with `value` as JSON."""
    return b"data: " + _encode(value) + b"\n\n"


def typed_event(value: Mapping[str, Any]) -> bytes:
    """One SSE event that is named by the `type` of `value`."""
    return b"event: " + str(value["type"]).encode() + b"\n" + event(value)


def error_event(error: RequestError) -> bytes:
    """An error as the last event of a stream."""
    return event(error_body(error))


class TextEvent:
    """Events that differ in one text alone: all around it is encoded once.

    make: the event's value for a text.
    """

    __slots__ = ("_after", "_before")
    _MARK = "\x1atext\x1a"

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._before, self._after = event(make(self._MARK)).split(_encode(self._MARK))

    def with_text(self, text: str) -> bytes:
        """The event that says `text`."""
        return self._before + _encode(text) + self._after


class Watch:
    """While entered, calls `on_gone` as soon as the client closes its connection."""

    def __init__(self, receive: Receive, on_gone: Callable[[], object]) -> None:
        self._receive = receive
        self._on_gone = on_gone
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.create_task(self._run())

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._on_gone()


class Telling(Protocol):
    """How a route tells a stream; both may raise RequestError."""

    def news(self, sequences: Seq[Sequence]) -> bytes:
        """Events about sequences with new tokens or an end; may be empty."""

    def end(self) -> bytes:
        """The last events, once every sequence has been told to its end."""

    def failure(self, error: RequestError) -> bytes:
        """The last events instead, where something went wrong."""


class EventStream(Response):
    """Sends events as they come. An error after the first byte is one last event.

    No task runs per token: the engine client's flush calls `_Writer`, which writes straight to
    the connection. The response's own task sleeps from the headers to the end.
    """

    def __init__(
        self, generation: Generation, telling: Telling, on_gone: Callable[[], object]
    ) -> None:
        super().__init__()
        self._generation = generation
        self._telling = telling
        self._on_gone = on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application; whatever way it ends, the work behind it ends too."""
        writer = _Writer(self._generation, self._telling, connection_of(scope), scope["path"])

        def on_gone() -> None:
            self._on_gone()
            writer.give_up()

        try:
            with Watch(receive, on_gone):
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                last = await writer.run()
                await send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            self._on_gone()


class _Writer:
    """One stream's events on their way to its connection."""

    __slots__ = ("_connection", "_generation", "_last", "_path", "_telling")

    def __init__(
        self, generation: Generation, telling: Telling, connection: Connection, path: str
    ) -> None:
        self._generation = generation
        self._telling = telling
        self._connection = connection
        self._path = path
        self._last: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def run(self) -> bytes:
        """Returns the stream's last events, which are not yet written."""
        self._generation.on_news(self._write)
        self._connection.on_writable = self._write
        try:
            self._write()
            return await self._last
        finally:
            self._generation.on_news(None)
            self._connection.on_writable = None

    def give_up(self) -> None:
        """Nobody reads any more."""
        if not self._last.done():
            self._last.set_result(b"")

    def _write(self) -> None:
        """Write what is new, unless the client is slow to read: then once it has caught up."""
        if self._connection.is_full or self._last.done():
            return
        try:
            news = self._generation.take_news()
            for sequence in news:
                if sequence.error is not None:
                    raise sequence.error
            told = self._telling.news(news) if news else b""
            if self._generation.is_done:
                self._last.set_result(told + self._telling.end())
            elif told:
                self._connection.write_chunk(told)
        except RequestError as error:
            self._last.set_result(self._telling.failure(error))
        except Exception:  # noqa: BLE001 (headers are out: an event is all that can be said)
            self._last.set_result(self._telling.failure(internal_error(self._path)))
