"""Calls written as tags, one parameter after the other: Qwen3-Coder and GLM-4.5.

Values are plain text. The function's schema says which are strings; others stand as they are if
they are JSON. They are told as one JSON object, in the order in which they come.
"""

from __future__ import annotations

import json
import re

from srt.text.source import Markers, Source, Steps
from srt.text.tools.calls import Calls, Function
from srt.text.tools.json_text import quoted

FUNCTION = "<function="
_NAME = re.compile(r"[\w.\-]*")
_CODER_VALUE_ENDS = Markers("</parameter>", "<parameter=", "</function>")
_GLM_KEY_ENDS = Markers("</arg_key>")
_GLM_VALUE_ENDS = Markers("</arg_value>", "</tool_call>")
_ANGLE = Markers(">")


class ObjectWriter:
    """Tells parameters as one JSON object."""

    def __init__(self, calls: Calls, function: Function) -> None:
        self._calls = calls
        self._function = function
        self._begun = "{"

    def read_value(self, source: Source, key: str, ends: Markers) -> Steps[str]:
        """Tell one parameter, its value up to one of `ends`; returns which, not taken."""
        self._calls.arguments(f"{self._begun}{json.dumps(key, ensure_ascii=False)}: ")
        self._begun = ", "
        kind = self._function.type_of(key)
        if kind in (None, "string"):
            return (yield from self._read_string(source, ends))
        parts: list[str] = []
        end = yield from source.take_until(ends, parts.append)
        self._calls.arguments(_as_json("".join(parts)))
        return end

    def close(self) -> None:
        """The call has ended."""
        self._calls.arguments("{}" if self._begun == "{" else "}")
        self._calls.close()

    def _read_string(self, source: Source, ends: Markers) -> Steps[str]:
        """One line break after the opening tag and one before the end are not part of the value."""
        self._calls.arguments('"')
        yield from source.has("\n")
        held = ""

        def emit(text: str) -> None:
            nonlocal held
            text = held + text
            held = "\n" if text.endswith("\n") else ""
            self._calls.arguments(quoted(text.removesuffix("\n")))

        end = yield from source.take_until(ends, emit)
        if end:
            self._calls.arguments('"')
        return end


def read_qwen3_coder(source: Source, calls: Calls, marker: str) -> Steps[None]:
    """`<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`."""
    if marker != FUNCTION:
        yield from source.skip_space()
        yield from source.expect(FUNCTION)
    name = yield from source.take_run(_NAME)
    yield from source.expect(">")
    writer = ObjectWriter(calls, calls.check(name))
    yield from source.skip_space()
    is_parameter = yield from source.has("<parameter=")
    if not is_parameter:
        yield from source.expect("</function>")
    calls.begin(name)
    source.unpin()
    while is_parameter:
        parts: list[str] = []
        yield from source.take_until(_ANGLE, parts.append)
        yield from source.has(">")
        end = yield from writer.read_value(source, "".join(parts), _CODER_VALUE_ENDS)
        if not end:
            return  # cut off: so are the arguments
        yield from source.has("</parameter>")
        yield from source.skip_space()
        is_parameter = yield from source.has("<parameter=")
        if not is_parameter:
            yield from source.has("</function>")
    writer.close()
    yield from _close_tool_call(source)


def read_glm4(source: Source, calls: Calls, marker: str) -> Steps[None]:  # noqa: ARG001
    """`<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`."""
    yield from source.skip_space()
    name = yield from source.take_run(_NAME)
    writer = ObjectWriter(calls, calls.check(name))
    yield from source.skip_space()
    is_parameter = yield from source.has("<arg_key>")
    if not is_parameter:
        yield from source.expect("</tool_call>")
    calls.begin(name)
    source.unpin()
    while is_parameter:
        parts: list[str] = []
        end = yield from source.take_until(_GLM_KEY_ENDS, parts.append)
        yield from source.has(end)
        yield from source.skip_space()
        if not (yield from source.has("<arg_value>")):
            break
        end = yield from writer.read_value(source, "".join(parts), _GLM_VALUE_ENDS)
        if not end:
            return
        yield from source.has("</arg_value>")
        yield from source.skip_space()
        is_parameter = yield from source.has("<arg_key>")
    else:
        yield from source.has("</tool_call>")
    writer.close()


def _close_tool_call(source: Source) -> Steps[None]:
    source.pin()
    yield from source.skip_space()
    if not (yield from source.has("</tool_call>")):
        source.rewind()


def _as_json(text: str) -> str:
    """A value that is JSON as it stands; any other as a string."""
    text = text.strip()
    try:
        json.loads(text, parse_constant=_refuse)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)
    return text


def _refuse(word: str) -> None:
    raise ValueError(word)
