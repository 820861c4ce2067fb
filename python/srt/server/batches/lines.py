"""One line of a batch's input file: checked, and answered as a client would be over HTTP."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from srt.server.answers import guarded
from srt.server.batches.store import Answer, compact_json

MAX_LINES = 50_000
Handler = Callable[[Request], Awaitable[Response]]


class BadLine(Exception):
    """A line that is no request of its batch; the message says why."""

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.custom_id = custom_id


class InputLine(msgspec.Struct, frozen=True):
    """A request. body: its JSON as it stands in the file."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


_decode = msgspec.json.Decoder(InputLine).decode


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of an input file that hold anything."""
    with path.open("rb") as lines:
        for line in lines:
            if line.strip():
                yield line.strip()


def parse_line(line: bytes, endpoint: str, known_ids: set[str]) -> InputLine:
    """Raises BadLine. known_ids: of the lines before; this one's is added."""
    try:
        parsed = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLine("invalid_line", f"the line is not a request: {error}") from error
    name = parsed.custom_id
    if not name:
        raise BadLine("missing_custom_id", "custom_id is empty")
    if name in known_ids:
        raise BadLine("duplicate_custom_id", f"an earlier line has custom_id {name!r}", name)
    known_ids.add(name)
    if parsed.method != "POST":
        raise BadLine("invalid_method", f"method is {parsed.method!r}; it must be POST", name)
    if parsed.url != endpoint:
        raise BadLine("invalid_url", f"url is {parsed.url!r}; the batch is for {endpoint}", name)
    try:
        is_stream = msgspec.json.decode(parsed.body, type=_Streams).stream
    except msgspec.DecodeError as error:
        raise BadLine("invalid_body", f"body: {error}", name) from error
    if is_stream:
        raise BadLine("invalid_body", "body.stream must be false in a batch", name)
    return parsed


class _Streams(msgspec.Struct, frozen=True):
    stream: Any = None


class InsideRequest:
    """A POST that comes from no connection. `leave` is what a client's going away is."""

    def __init__(self, path: str, body: bytes) -> None:
        self._body: bytes | None = body
        self._left = asyncio.Event()
        self._scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "client": None,
            "server": None,
        }

    def leave(self) -> None:
        """Whatever runs for it is aborted."""
        self._left.set()

    async def answer(self, handler: Handler) -> tuple[int, bytes]:
        """Status and body of the handler's answer; its errors are answers too."""
        response = await guarded(handler)(Request(self._scope, self._receive))
        return response.status_code, bytes(response.body)

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}


def answer_of(index: int, line: InputLine, status: int, body: bytes) -> Answer:
    """The line of the output file, or of the error file where `status` says so."""
    request_id = f"req_{uuid.uuid4().hex}"
    told = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": line.custom_id,
        "response": {
            "status_code": status,
            "request_id": request_id,
            "body": msgspec.json.decode(body),
        },
        "error": None,
    }
    return Answer(index, status >= 400, compact_json(told))


def refusal_of(index: int, code: str, message: str, custom_id: str | None) -> Answer:
    """The error file's line about a request that was never made."""
    told = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message, "line": index + 1},
    }
    return Answer(index, True, compact_json(told))
