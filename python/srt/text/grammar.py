"""Grammars as clients write them: checked for shape and size here, compiled elsewhere.

The functions make the `Grammar` that travels in `SamplingParams`. What only a compiler can tell
is told by `text/grammar_checker.py`, before the engine hears of the request.
"""

from __future__ import annotations

import json
from typing import Any

from srt.errors import InvalidParameter, UnsupportedParameter
from srt.types import Grammar

MAX_REGEX_BYTES = 16 << 10
MAX_EBNF_BYTES = 64 << 10
MAX_SCHEMA_BYTES = 256 << 10
MAX_CHOICES = 1024

JSON_OBJECT = Grammar("json_schema", '{"type":"object"}')


def regex_grammar(pattern: str, field: str) -> Grammar:
    """An answer that matches `pattern` as a whole. Raises InvalidParameter."""
    if not pattern:
        raise InvalidParameter(f"{field} is empty; it must be a regular expression", field)
    _check_size(pattern, MAX_REGEX_BYTES, field)
    return Grammar("regex", pattern)


def ebnf_grammar(source: str, field: str) -> Grammar:
    """An answer that a GBNF or Lark grammar derives. Raises InvalidParameter."""
    if not source.strip():
        raise InvalidParameter(f"{field} is empty; it must be a grammar", field)
    _check_size(source, MAX_EBNF_BYTES, field)
    return Grammar("ebnf", source)


def choice_grammar(choices: list[str], field: str) -> Grammar:
    """An answer that is one of `choices`. Raises InvalidParameter."""
    if not 1 <= len(choices) <= MAX_CHOICES or not all(choices):
        raise InvalidParameter(
            f"{field} has {len(choices)} texts; it must have 1 to {MAX_CHOICES}, none empty",
            field,
        )
    rule = " | ".join(json.dumps(text, ensure_ascii=False) for text in choices)
    return ebnf_grammar(f"start: {rule}", field)


def schema_grammar(schema: Any, field: str) -> Grammar:
    """A JSON document that `schema` (an object, a boolean, or either as text) describes.

    Raises:
        InvalidParameter: no JSON, or no schema. UnsupportedParameter: it sets compiler options.
    """
    if isinstance(schema, str):
        _check_size(schema, MAX_SCHEMA_BYTES, field)
        try:
            schema = json.loads(schema)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidParameter(f"{field} is not valid JSON: {error}", field) from error
    if not isinstance(schema, dict | bool):
        raise InvalidParameter(
            f"{field} is {type(schema).__name__}; a JSON schema is an object or a boolean", field
        )
    if schema is False:
        raise InvalidParameter(f"{field} is false, which no document matches", field)
    if schema is True:
        schema = {}
    if "x-guidance" in schema:
        raise UnsupportedParameter(f"{field} sets x-guidance, which is not honoured", field)
    try:
        text = json.dumps(schema, separators=(",", ":"))
    except (RecursionError, ValueError) as error:
        raise InvalidParameter(f"{field} is nested too deeply", field) from error
    _check_size(text, MAX_SCHEMA_BYTES, field)
    return Grammar("json_schema", text)


def _check_size(source: str, limit: int, field: str) -> None:
    size = len(source.encode("utf-8", "surrogatepass"))
    if size > limit:
        raise InvalidParameter(f"{field} has {size} bytes; it must have at most {limit}", field)
