"""Calls written as JSON: Hermes and Qwen, Llama 3, Mistral, DeepSeek, Kimi."""

from __future__ import annotations

import re

from srt.text.source import Malformed, Markers, Source, Steps
from srt.text.tools.calls import Calls, ReadCalls
from srt.text.tools.json_text import json_string, json_value

ARGUMENT_KEYS = ("arguments", "parameters")
PYTHON_TAG = "<|python_tag|>"
TOOL_CALLS = "[TOOL_CALLS]"
_NAME = re.compile(r"[\w.\-]*")
_ID = re.compile(r"[A-Za-z0-9]*")
_TO_THE_END = Markers()


def read_hermes(source: Source, calls: Calls, marker: str) -> Steps[None]:  # noqa: ARG001
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""
    yield from source.skip_space()
    yield from json_call(source, calls, Markers("</tool_call>"))
    source.pin()
    yield from source.skip_space()
    if not (yield from source.has("</tool_call>")):
        source.rewind()


def read_llama3(source: Source, calls: Calls, marker: str) -> Steps[None]:  # noqa: ARG001
    """`{"name": …, "parameters": {…}}`, several separated by `;`, `,` or nothing."""
    ends = Markers(PYTHON_TAG)
    while True:
        yield from source.skip_space()
        yield from json_call(source, calls, ends)
        source.pin()
        yield from source.skip_space()
        if (yield from source.next_char()) in (";", ","):
            source.at += 1
            yield from source.skip_space()
        yield from source.has(PYTHON_TAG)


def read_mistral(source: Source, calls: Calls, marker: str) -> Steps[None]:  # noqa: ARG001
    """`[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name[ARGS]{…}`."""
    yield from source.skip_space()
    ends = Markers(TOOL_CALLS)
    if (yield from source.next_char()) != "[":
        name = yield from source.take_run(_NAME)
        if (yield from source.has("[CALL_ID]")):
            yield from source.take_run(_ID)
        yield from source.has("[ARGS]")
        yield from named_call(source, calls, name, ends)
        return
    source.at += 1
    while True:
        yield from source.skip_space()
        yield from json_call(source, calls, ends)
        source.pin()
        yield from source.skip_space()
        if (yield from source.has("]")):
            source.unpin()
            return
        yield from source.expect(",")


def read_json_list(source: Source, calls: Calls, marker: str) -> Steps[None]:  # noqa: ARG001
    """`[{"name": …, "parameters": {…}}, …]`: what a grammar makes every model write."""
    yield from source.skip_space()
    yield from source.expect("[")
    while True:
        yield from source.skip_space()
        yield from json_call(source, calls, _TO_THE_END)
        source.pin()
        yield from source.skip_space()
        if (yield from source.has("]")):
            source.unpin()
            return
        yield from source.expect(",")


def marked_group(begin: str, separator: str, end: str, group_end: str) -> ReadCalls:
    """`begin NAME separator {…} end`, repeated, and then `group_end`.

    DeepSeek-V3 writes the word `function` and another separator first, and fences the arguments
    as Markdown; Kimi writes `functions.NAME:INDEX`.
    """
    ends = Markers(end)

    def read(source: Source, calls: Calls, marker: str) -> Steps[None]:  # noqa: ARG001
        while True:
            yield from source.skip_space()
            if (yield from source.has(group_end)):
                source.unpin()
                return
            yield from source.expect(begin)
            name = yield from _marked_name(source, separator)
            is_fenced = yield from source.has("```json")
            yield from source.skip_space()
            yield from named_call(source, calls, name, ends)
            source.pin()
            yield from source.skip_space()
            if is_fenced:
                yield from source.has("```")
                yield from source.skip_space()
            if (yield from source.has(end)):
                source.pin()

    return read


def _marked_name(source: Source, separator: str) -> Steps[str]:
    yield from source.skip_space()
    name = yield from source.take_run(_NAME)
    if (yield from source.has(":")):  # Kimi: which call of the reply it is
        yield from source.take_run(_ID)
        name = name.removeprefix("functions.")
    yield from source.skip_space()
    yield from source.expect(separator)
    if name == "function" and (yield from source.next_char()) not in ("{", ""):
        name = yield from source.take_run(_NAME)
    yield from source.skip_space()
    return name


def json_call(source: Source, calls: Calls, ends: Markers) -> Steps[None]:
    """One object with a name and arguments.

    Args:
        ends: what ends a call whose arguments are no valid JSON.

    Raises:
        Malformed: before the arguments have begun.
    """
    yield from source.expect("{")
    name: str | None = None
    held: str | None = None  # arguments that came before the name
    has_begun = False
    while True:
        yield from source.skip_space()
        key = yield from json_string(source)
        yield from source.skip_space()
        yield from source.expect(":")
        yield from source.skip_space()
        if key == "name" and name is None:
            name = yield from json_string(source)
            calls.check(name)
        elif key in ARGUMENT_KEYS and held is None and not has_begun:
            if name is None:
                held = yield from _held_arguments(source)
            else:
                has_begun = True
                yield from named_call(source, calls, name, ends)
                source.pin()  # if the rest is malformed, it is text
        else:
            yield from json_value(source, _ignore)
        yield from source.skip_space()
        if (yield from source.has(",")):
            continue
        has_closed = yield from source.has("}")
        break
    if has_begun:  # a brace that the model forgot is no reason to fail
        source.unpin()
        return
    if name is None or not has_closed:
        raise Malformed
    calls.begin(name)
    source.unpin()
    calls.arguments(held or "{}")
    calls.close()


def named_call(source: Source, calls: Calls, name: str, ends: Markers) -> Steps[None]:
    """The arguments of a call whose name is known; from here on there is no way back.

    Raises:
        Malformed: nobody declared `name`, or no arguments follow.
    """
    calls.check(name)
    char = yield from source.next_char()
    if char == '"':  # an object inside a string
        text = yield from json_string(source)
        calls.begin(name)
        source.unpin()
        calls.arguments(text)
        calls.close()
        return
    if char == "n":
        yield from source.expect("null")
        calls.begin(name)
        source.unpin()
        calls.arguments("{}")
        calls.close()
        return
    if char != "{":
        raise Malformed
    calls.begin(name)
    source.unpin()
    try:
        yield from json_value(source, calls.arguments)
    except Malformed:
        yield from source.take_until(ends, calls.arguments)
    calls.close()


def _held_arguments(source: Source) -> Steps[str]:
    char = yield from source.next_char()
    if char == '"':
        return (yield from json_string(source))
    parts: list[str] = []
    if char == "n":
        yield from source.expect("null")
        return "{}"
    if char != "{":
        raise Malformed
    yield from json_value(source, parts.append)
    return "".join(parts)


def _ignore(text: str) -> None:  # noqa: ARG001
    return None
