"""When the request being handled came, and the trace that its client began.

A context variable, set once where a request enters and read where its sequences are made: every
route would otherwise hand it through.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send


@dataclass(slots=True)
class Arrival:
    """at_s: monotonic. traceparent: the client's W3C trace context, or "".

    is_over: the request has been answered; a task that it left behind works for itself.
    """

    at_s: float
    traceparent: str = ""
    is_over: bool = False


_current: ContextVar[Arrival | None] = ContextVar("arrival", default=None)


def current_arrival() -> Arrival:
    """Of the request being handled; outside of one, as if it came now."""
    arrival = _current.get()
    return Arrival(time.monotonic()) if arrival is None or arrival.is_over else arrival


class NoteArrival:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        shown = next((v for k, v in scope["headers"] if k == b"traceparent"), b"")
        arrival = Arrival(time.monotonic(), shown.decode("latin-1"))
        _current.set(arrival)
        try:
            await self._app(scope, receive, send)
        finally:
            arrival.is_over = True
