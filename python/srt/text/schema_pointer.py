"""Where in a JSON schema the compiler's complaint belongs: the deepest subschema that has it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

MAX_SUBSCHEMAS = 500
_UNIMPLEMENTED = re.compile(r"Unimplemented keys: \[\"([^\"]+)\"")
_DEFINITIONS = ("$defs", "definitions")
_BY_NAME = (*_DEFINITIONS, "properties", "patternProperties", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = (
    *("items", "additionalProperties", "additionalItems", "unevaluatedProperties"),
    *("not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems"),
)
# words of the compiler -> the keyword that they are about
_KEYWORDS = (
    ("oneOf", "oneOf"),
    ("Unknown format", "format"),
    ("regex", "pattern"),
    ("look-around", "pattern"),
    ("Pointer", "$ref"),
    ("Resource", "$ref"),
    ("multipleOf", "multipleOf"),
    ("Invalid type", "type"),
    ("minimum", "minimum"),
)


def find_pointer(schema: Any, message: str, complaint_of: Callable[[Any], str | None]) -> str:
    """The JSON pointer of what `message` is about: a keyword if it can be told, else a subschema.

    Args:
        complaint_of: compiles a schema alone; its message, or None if nothing is wrong.
    """
    if not isinstance(schema, dict):
        return ""
    shared = {name: schema[name] for name in _DEFINITIONS if name in schema}
    found = []
    for pointer, part in _subschemas(schema, ""):
        found.append((pointer, part))
        if len(found) == MAX_SUBSCHEMAS:
            break
    for pointer, part in sorted(found, key=lambda item: -item[0].count("/")):
        if complaint_of({**shared, **part}) == message:
            return pointer + _keyword(part, message)
    return _keyword(schema, message)


def unsupported_keyword(message: str) -> str | None:
    """The keyword that the compiler does not know, if that is what it says."""
    match = _UNIMPLEMENTED.search(message)
    return match[1] if match else None


def _keyword(part: dict[str, Any], message: str) -> str:
    unknown = unsupported_keyword(message)
    if unknown is not None and unknown in part:
        return f"/{_escape(unknown)}"
    return next((f"/{key}" for word, key in _KEYWORDS if word in message and key in part), "")


def _subschemas(schema: dict[str, Any], pointer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, part in _children(schema):
        if isinstance(part, dict):
            yield pointer + place, part
            yield from _subschemas(part, pointer + place)


def _children(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in _BY_NAME:
        if isinstance(schema.get(key), dict):
            for name, part in schema[key].items():
                yield f"/{_escape(key)}/{_escape(name)}", part
    for key in _LISTS:
        if isinstance(schema.get(key), list):
            for i, part in enumerate(schema[key]):
                yield f"/{key}/{i}", part
    for key in _SINGLE:
        if isinstance(schema.get(key), dict):
            yield f"/{key}", schema[key]


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
