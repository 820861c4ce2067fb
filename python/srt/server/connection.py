"""An HTTP connection: bounded before its request is known, and open to streams without messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10  # of request line and headers
HEAD_TIMEOUT_S = 60.0  # to send them
_NAME = "srt.connection"


class Connection(HttpToolsProtocol):
    """uvicorn's, with two additions.

    A request's head has a limit in size and time; who exceeds it is cut off.

    Between a response's start and its last message, both sent as ASGI messages, `write_chunk`
    puts bytes on the wire at once. `on_writable` is called when the client, having been slow,
    has caught up.
    """

    on_writable: Callable[[], object] | None = None
    _in_head = True
    _num_head_bytes = 0
    _has_completed = False  # a request, while `data_received` runs
    _head_timer: asyncio.TimerHandle | None = None

    @property
    def is_full(self) -> bool:
        """Whether enough waits for the client; what is written now would pile up."""
        return self.flow.write_paused

    def write_chunk(self, data: bytes) -> None:
        """One chunk of a body in chunked encoding, which every body without a length is."""
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """It has sent something."""
        self._has_completed = False
        super().data_received(data)
        if not self._in_head or self._has_completed or self.transport.is_closing():
            return  # a whole request may come at once; its body is no part of the next head
        self._num_head_bytes += len(data)
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._await_head()
        self.scope["extensions"] = {_NAME: self}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        """Its head is here."""
        self._end_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Its body is here; bytes from now on are another request's head."""
        super().on_message_complete()
        self._in_head, self._num_head_bytes = True, 0
        self._has_completed = True

    def resume_writing(self) -> None:
        """The client has read enough."""
        super().resume_writing()
        if self.on_writable is not None:
            self.on_writable()

    def _await_head(self) -> None:
        self._in_head = True
        if self._head_timer is None:
            timeout = HTTPStatus.REQUEST_TIMEOUT
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, timeout)

    def _end_head(self) -> None:
        self._in_head, self._num_head_bytes = False, 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: HTTPStatus) -> None:
        self._end_head()
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and not self.transport.is_closing():
            line = f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            self.transport.write(f"{line}connection: close\r\ncontent-length: 0\r\n\r\n".encode())
        self.transport.close()


def connection_of(scope: Scope) -> Connection:
    """The connection that a request came by."""
    return cast(Connection, scope["extensions"][_NAME])
