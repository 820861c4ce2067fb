"""Server-sent events, and noticing that the client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from srt.errors import RequestError
from srt.server.answers import error_body, internal_error

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


class EventStream(Response):
    """Sends blocks of events as they come. An error after the first byte is one last event."""

    def __init__(self, blocks: AsyncIterator[bytes], on_gone: Callable[[], object]) -> None:
        super().__init__()
        self._blocks = blocks
        self._on_gone = on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application; whatever way it ends, the work behind it ends too."""
        try:
            with Watch(receive, self._on_gone):
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                async for block in self._told(scope["path"]):
                    await send({"type": "http.response.body", "body": block, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._on_gone()

    async def _told(self, path: str) -> AsyncIterator[bytes]:
        try:
            async for block in self._blocks:
                yield block
        except RequestError as error:
            yield event(error_body(error))
        except Exception:  # noqa: BLE001 (headers are out: an event is all that can be said)
            yield event(error_body(internal_error(path)))
