"""How the fields of request bodies are described: in one place, for decoder, OpenAPI and docs."""

from __future__ import annotations

import typing
from functools import cache
from typing import Any

import msgspec

from srt.errors import UnsupportedParameter


def doc(text: str, **schema: Any) -> msgspec.Meta:
    """What a field means. schema: JSON Schema keywords that say what our own checks allow."""
    return msgspec.Meta(description=text, extra_json_schema=schema or None)


def refused(why: str) -> msgspec.Meta:
    """A field that we know and do not honour: any value but null, false and empty is refused."""
    return msgspec.Meta(description=f"Refused: {why}.", extra_json_schema={"x-refused": why})


@cache
def refusals(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The refused fields of a body, and why."""
    found = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        for note in getattr(hint, "__metadata__", ()):
            why = (note.extra_json_schema or {}).get("x-refused")
            if why is not None:
                found[name] = why
    return found


def refuse_unsupported(body: msgspec.Struct, prefix: str = "") -> None:
    """Raise UnsupportedParameter for the first refused field that is used; `prefix`: its place."""
    for field, why in refusals(type(body)).items():
        if getattr(body, field) not in (None, False, "", [], {}):
            name = prefix + field
            raise UnsupportedParameter(f"{name} is not supported: {why}", name)
