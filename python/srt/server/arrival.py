"""When the request being handled came, its name, and the trace that its client began.

A context variable, set once where a request enters and read where its sequences are made: every
route would otherwise hand it through.
"""

from __future__ import annotations

import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_REQUEST_ID = re.compile(rb"[!-~]{1,128}")


@dataclass(slots=True)
class Arrival:
    """at_s: monotonic. traceparent: the client's W3C trace context, or "".

    request_id: what the header x-request-id of the response says; "": not known yet.
    is_over: the request has been answered; a task that it left behind works for itself.
    """

    at_s: float
    traceparent: str = ""
    request_id: str = ""
    is_over: bool = False


_current: ContextVar[Arrival | None] = ContextVar("arrival", default=None)


def current_arrival() -> Arrival:
    """Of the request being handled; outside of one, as if it came now."""
    arrival = _current.get()
    return Arrival(time.monotonic()) if arrival is None or arrival.is_over else arrival


class NoteArrival:
    """The outermost middleware.

    Every response has an x-request-id: the client's own, if it sent one of at most 128 visible
    ASCII characters; else the id of the request that the route started; else a new one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrival = Arrival(time.monotonic())
        for name, value in scope["headers"]:
            if name == b"traceparent":
                arrival.traceparent = value.decode("latin-1")
            elif name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                arrival.request_id = value.decode()
        _current.set(arrival)
        try:
            await self._app(scope, receive, partial(_send_named, arrival, send))
        finally:
            arrival.is_over = True


async def _send_named(arrival: Arrival, send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        name = arrival.request_id.encode()
        if not _REQUEST_ID.fullmatch(name):  # a client's rid may be any text
            name = uuid.uuid4().hex.encode()
        message["headers"] = [*message.get("headers", ()), (b"x-request-id", name)]
    await send(message)
