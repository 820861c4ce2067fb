"""What an OpenAI body says its answer must match, in all the spellings that clients have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from srt.errors import InvalidParameter
from srt.server.openai.schemas import ChatBody, CompletionBody, ResponseFormat
from srt.text.grammar import (
    JSON_OBJECT,
    choice_grammar,
    ebnf_grammar,
    regex_grammar,
    schema_grammar,
)
from srt.text.sampling import Limits, Sampling
from srt.types import Grammar

_Make = Callable[[Any, str], Grammar]
_FIELDS: tuple[tuple[str, _Make], ...] = (
    ("regex", regex_grammar),
    ("json_schema", schema_grammar),
    ("ebnf", ebnf_grammar),
    ("guided_regex", regex_grammar),
    ("guided_json", schema_grammar),
    ("guided_grammar", ebnf_grammar),
    ("guided_choice", choice_grammar),
)
_STRUCTURED: tuple[tuple[str, _Make], ...] = (
    ("regex", regex_grammar),
    ("json", schema_grammar),
    ("grammar", ebnf_grammar),
    ("choice", choice_grammar),
)


def constrained(sampling: Sampling, body: ChatBody | CompletionBody, limits: Limits) -> Sampling:
    """`sampling` bound by the grammar of `body`, if it has one. Raises RequestError."""
    for field, grammar in _grammars(body):
        sampling = sampling.with_grammar(grammar, field, limits)
    return sampling


def _grammars(body: ChatBody | CompletionBody) -> Iterator[tuple[str, Grammar]]:
    if body.response_format is not None:
        yield from _of_format(body.response_format)
    for field, make in _FIELDS:
        value = getattr(body, field)
        if value is not None:
            yield field, make(value, field)
    if body.structured_outputs is None:
        return
    for name, make in _STRUCTURED:
        value = getattr(body.structured_outputs, name)
        if value is not None:
            field = f"structured_outputs.{name}"
            yield field, make(value, field)
    if body.structured_outputs.json_object:
        yield "structured_outputs.json_object", JSON_OBJECT


def _of_format(asked: ResponseFormat) -> Iterator[tuple[str, Grammar]]:
    if (asked.type == "json_schema") != (asked.json_schema is not None):
        raise InvalidParameter(
            f"response_format.json_schema goes with the type json_schema; the type is {asked.type}",
            "response_format.json_schema",
        )
    if asked.type == "json_object":
        yield "response_format", JSON_OBJECT
    elif asked.json_schema is not None:
        field = "response_format.json_schema.schema"
        schema = asked.json_schema.schema
        yield field, JSON_OBJECT if schema is None else schema_grammar(schema, field)
