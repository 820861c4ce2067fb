"""An HTTP connection that streams can write to without a message per token."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_NAME = "srt.connection"


class Connection(HttpToolsProtocol):
    """uvicorn's, and a door for bodies of events.

    Between the response's start and its last message, both sent as ASGI messages, `write_chunk`
    puts bytes on the wire at once. `on_writable` is called when the client, having been slow,
    has caught up.
    """

    on_writable: Callable[[], object] | None = None

    @property
    def is_full(self) -> bool:
        """Whether enough waits for the client; what is written now would pile up."""
        return self.flow.write_paused

    def write_chunk(self, data: bytes) -> None:
        """One chunk of a body in chunked encoding, which every body without a length is."""
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.scope["extensions"] = {_NAME: self}  # type: ignore[dict-item]

    def resume_writing(self) -> None:
        """The client has read enough."""
        super().resume_writing()
        if self.on_writable is not None:
            self.on_writable()


def connection_of(scope: Scope) -> Connection:
    """The connection that a request came by."""
    return cast(Connection, scope["extensions"][_NAME])
