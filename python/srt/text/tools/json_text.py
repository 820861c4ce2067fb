"""JSON values read from a growing text: where one ends, and the first character that is wrong."""

from __future__ import annotations

import json
import re

from srt.text.source import Emit, Malformed, Source, Steps

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_SPACE = re.compile(r"[ \t\r\n]*")
_SIMPLE_ESCAPES = '"\\/bfnrt'
_HEX = "0123456789abcdefABCDEF"


def json_value(source: Source, emit: Emit) -> Steps[None]:
    """Read one value and emit it as it comes.

    Control characters inside strings, which models write and JSON forbids, are emitted as escapes.

    Raises:
        Malformed: at the first character that JSON does not allow; all before it was emitted.
    """
    ends: list[str] = []  # what closes the open containers
    while True:
        yield from _space(source, emit)
        opened = yield from _begin_value(source, emit)
        if opened:
            ends.append(opened)
            yield from _space(source, emit)
            if (yield from source.next_char()) != opened:
                if opened == "}":
                    yield from _key(source, emit)
                continue
        if not (yield from _end_values(source, emit, ends)):
            return


def json_string(source: Source) -> Steps[str]:
    """Read one string and return what it stands for. Raises Malformed."""
    parts: list[str] = []
    yield from _string(source, parts.append)
    text: str = json.loads("".join(parts))
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def quoted(text: str) -> str:
    """`text` as it stands inside a JSON string, without the quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _begin_value(source: Source, emit: Emit) -> Steps[str]:
    """A scalar, or the beginning of a container; returns what closes it, "" for a scalar."""
    char = yield from source.next_char()
    if char in ("{", "["):
        source.at += 1
        emit(char)
        return "}" if char == "{" else "]"
    if char == '"':
        yield from _string(source, emit)
        return ""
    yield from _scalar(source, emit)
    return ""


def _end_values(source: Source, emit: Emit, ends: list[str]) -> Steps[bool]:
    """After a value: close what closes. Returns whether another value follows in a container."""
    while ends:
        yield from _space(source, emit)
        char = yield from source.next_char()
        if char == ends[-1]:
            source.at += 1
            emit(char)
            ends.pop()
        elif char == ",":
            source.at += 1
            emit(char)
            if ends[-1] == "}":
                yield from _space(source, emit)
                yield from _key(source, emit)
            return True
        else:
            raise Malformed
    return False


def _key(source: Source, emit: Emit) -> Steps[None]:
    yield from _string(source, emit)
    yield from _space(source, emit)
    yield from source.expect(":")
    emit(":")


def _string(source: Source, emit: Emit) -> Steps[None]:
    yield from source.expect('"')
    emit('"')
    while True:
        char = yield from source.next_char()
        if not char:
            raise Malformed
        if char == '"':
            source.at += 1
            emit(char)
            return
        if char == "\\":
            emit((yield from _escape(source)))
        elif char < " ":
            source.at += 1
            emit(quoted(char))
        else:
            run = _PLAIN.match(source.text, source.at)
            assert run is not None
            source.at = run.end()
            emit(run[0])


def _escape(source: Source) -> Steps[str]:
    """One escape sequence, taken whole or not at all."""
    while True:
        text = source.text[source.at : source.at + 6]
        length = 6 if text[1:2] == "u" else 2
        is_right = text[1:2] in _SIMPLE_ESCAPES if length == 2 else all(c in _HEX for c in text[2:])
        if not is_right:
            raise Malformed
        if len(text) >= length:
            source.at += length
            return text[:length]
        if source.has_ended:
            raise Malformed
        yield


def _scalar(source: Source, emit: Emit) -> Steps[None]:
    """A number, true, false or null, emitted when whole."""
    while True:
        run = _SCALAR.match(source.text, source.at)
        assert run is not None
        if run.end() < len(source.text) or source.has_ended:
            break
        yield
    if run[0] not in ("true", "false", "null") and not _NUMBER.fullmatch(run[0]):
        raise Malformed
    source.at = run.end()
    emit(run[0])


def _space(source: Source, emit: Emit) -> Steps[None]:
    run = yield from source.take_run(_SPACE)
    if run:
        emit(run)
