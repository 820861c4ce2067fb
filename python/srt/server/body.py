"""Request bodies: bounded in size, decoded once, and every mistake named by its field."""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar

import msgspec
from starlette.requests import Request

from srt.errors import BodyTooLarge, InvalidParameter

T = TypeVar("T")

_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[\d+\]")
_MAX_NULL_FIELDS = 64


class BodyReader(Generic[T]):
    """Reads one kind of body."""

    def __init__(self, kind: type[T]) -> None:
        self.kind = kind
        self._decoder = msgspec.json.Decoder(kind)

    async def read(self, request: Request, max_bytes: int) -> T:
        """The decoded body. Raises BodyTooLarge, InvalidParameter."""
        return self.decode(await read_bytes(request, max_bytes))

    def decode(self, data: bytes) -> T:
        """Raises InvalidParameter naming the field."""
        try:
            return self._decode(data)
        except msgspec.ValidationError as error:
            raise explain(str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidParameter(f"the body is not valid JSON: {error}") from error
        except RecursionError as error:
            raise InvalidParameter("the body is nested too deeply") from error

    def _decode(self, data: bytes) -> T:
        """An unknown field that is null asks for nothing: clients dump all that they know."""
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as error:
            if b"null" not in data or not _drop_null(value := msgspec.json.decode(data), error):
                raise
        for _ in range(_MAX_NULL_FIELDS):
            try:
                return msgspec.convert(value, self.kind)
            except msgspec.ValidationError as error:
                if not _drop_null(value, error):
                    raise
        return msgspec.convert(value, self.kind)


async def read_bytes(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as it is known to be."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(int(announced), max_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(size, max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _drop_null(value: Any, error: msgspec.ValidationError) -> bool:
    """Take the unknown field that `error` names out of `value` where it is null.

    Its neighbours in lists lose theirs too: a chat's messages are of one make.
    """
    match = _AT.match(str(error))
    unknown = _UNKNOWN.fullmatch(match["what"]) if match is not None else None
    if match is None or unknown is None:
        return False
    nodes = [value]
    for step in _STEP.finditer(match["path"] or "$"):
        if step["name"] is None:
            nodes = [one for node in nodes if isinstance(node, list) for one in node]
        else:
            nodes = [node.get(step["name"]) for node in nodes if isinstance(node, dict)]
    name = unknown[1]
    found = [n for n in nodes if isinstance(n, dict) and name in n and n[name] is None]
    for node in found:
        del node[name]
    return bool(found)


def _too_large(size: int, limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has {size} bytes or more, the limit is {limit}")


def explain(message: str, where: str = "") -> InvalidParameter:
    """msgspec's words, turned so that the field comes first; `where`: the place of its value."""
    match = _AT.match(message)
    assert match is not None
    what = match["what"]
    path = (where + (match["path"] or "$").removeprefix("$")).removeprefix(".")
    if unknown := _UNKNOWN.fullmatch(what):
        field = f"{path}.{unknown[1]}".removeprefix(".")
        return InvalidParameter(f"{field} is not a known field", field)
    if missing := _MISSING.fullmatch(what):
        field = f"{path}.{missing[1]}".removeprefix(".")
        return InvalidParameter(f"{field} is required", field)
    what = what.replace("`", "")
    if not path:
        return InvalidParameter(f"the body must be a JSON object: {what}")
    return InvalidParameter(f"{path}: {what[:1].lower()}{what[1:]}", path)
