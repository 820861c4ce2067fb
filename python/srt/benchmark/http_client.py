"""A small HTTP/1.1 client for load: one connection a request, bodies read as they arrive."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

_LINE_LIMIT = 1 << 24


class HttpError(Exception):
    """The server refused, or spoke no HTTP."""


class Exchange:
    """One request and its answer. `async with Exchange(url, body) as answer: async for …`."""

    def __init__(
        self,
        url: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._url = urlsplit(url)
        self._body = b"" if body is None else json.dumps(body).encode()
        self._method = "GET" if body is None else "POST"
        self._headers = dict(headers or {})
        self._length: int | None = None
        self._is_chunked = False

    async def __aenter__(self) -> Exchange:
        """Send the request, read the head of the answer. Raises HttpError unless it is 200."""
        is_tls = self._url.scheme == "https"
        port = self._url.port or (443 if is_tls else 80)
        self._reader, self._writer = await asyncio.open_connection(
            self._url.hostname,
            port,
            limit=_LINE_LIMIT,
            ssl=ssl.create_default_context() if is_tls else None,
        )
        path = self._url.path or "/"
        lines = [
            f"{self._method} {path} HTTP/1.1",
            f"Host: {self._url.netloc}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(self._body)}",
            *(f"{name}: {value}" for name, value in self._headers.items()),
        ]
        self._writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + self._body)
        try:
            status = await self._read_head()
            if status != 200:
                text = (await self.read()).decode("utf-8", "replace")
                raise HttpError(f"{self._method} {path}: status {status}: {text[:500]}")
        except BaseException:
            self._writer.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._writer.close()

    async def read(self) -> bytes:
        """The rest of the body."""
        return b"".join([part async for part in self.parts()])

    async def parts(self) -> AsyncIterator[bytes]:
        """The body in pieces, as they arrive. Raises HttpError if it is cut short."""
        try:
            if self._is_chunked:
                while size := int((await self._reader.readline()).split(b";")[0], 16):
                    yield (await self._reader.readexactly(size + 2))[:-2]
            elif self._length is not None:
                yield await self._reader.readexactly(self._length)
            else:
                while part := await self._reader.read(1 << 16):
                    yield part
        except (asyncio.IncompleteReadError, ValueError) as error:
            raise HttpError("the server closed the connection before the end") from error

    async def events(self) -> AsyncIterator[bytes]:
        """The data of each server-sent event, up to `[DONE]`."""
        rest = b""
        async for part in self.parts():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                data = line.strip()
                if data.startswith(b"data:"):
                    data = data[5:].strip()
                    if data == b"[DONE]":
                        return
                    yield data

    async def _read_head(self) -> int:
        first = (await self._reader.readline()).split(None, 2)
        if len(first) < 2 or not first[0].startswith(b"HTTP/1."):
            raise HttpError("the server closed the connection without an answer")
        while line := (await self._reader.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                self._length = int(value)
            elif name.lower() == b"transfer-encoding":
                self._is_chunked = b"chunked" in value.lower()
        return int(first[1])


async def get_json(url: str, headers: Mapping[str, str] | None = None) -> Any:
    """A GET. Raises HttpError, OSError."""
    async with Exchange(url, headers=headers) as answer:
        return json.loads(await answer.read())
