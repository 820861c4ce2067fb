"""Structured output at the server: every spelling gives the engine one grammar, or a 400."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.running import Running
from srt.errors import ConfigError
from srt.types import Grammar

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
SCHEMA_TEXT = '{"type":"object","properties":{"a":{"type":"integer"}}}'
AS_SCHEMA = Grammar("json_schema", SCHEMA_TEXT)
OBJECT = Grammar("json_schema", '{"type":"object"}')
CHOICE = Grammar("ebnf", 'start: "yes" | "n\\"o"')


def named(**more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", **more}}


SPELLINGS: list[tuple[dict[str, Any], Grammar | None]] = [
    ({"regex": "a+"}, Grammar("regex", "a+")),
    ({"json_schema": SCHEMA_TEXT}, AS_SCHEMA),
    ({"json_schema": SCHEMA}, AS_SCHEMA),
    ({"ebnf": 'root ::= "a"'}, Grammar("ebnf", 'root ::= "a"')),
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, OBJECT),
    ({"response_format": named(schema=SCHEMA, strict=True)}, AS_SCHEMA),
    ({"response_format": named(schema=SCHEMA, strict=False, description="d")}, AS_SCHEMA),
    ({"response_format": named()}, OBJECT),
    ({"guided_regex": "a+"}, Grammar("regex", "a+")),
    ({"guided_json": SCHEMA}, AS_SCHEMA),
    ({"guided_grammar": 'start: "a"'}, Grammar("ebnf", 'start: "a"')),
    ({"guided_choice": ["yes", 'n"o']}, CHOICE),
    ({"structured_outputs": {"json": SCHEMA}}, AS_SCHEMA),
    ({"structured_outputs": {"json_object": True}}, OBJECT),
    ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, Grammar("ebnf", 'start: "a"')),
    ({"structured_outputs": {"choice": ["yes", 'n"o']}}, CHOICE),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_every_spelling_reaches_the_engine(server: Running, path: str) -> None:
    start = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "a"}
    for fields, grammar in SPELLINGS:
        answer = server.post(path, max_tokens=1, **start, **fields)
        assert answer.status_code == 200, (fields, answer.text)
        sent = server.engine.requests[-1].sampling
        assert sent.grammar == grammar, fields
        assert (1 in sent.stop_token_ids) == (
            1 in server.engine.requests[0].sampling.stop_token_ids
        )


def test_the_native_spelling_and_lists_of_parameters(server: Running) -> None:
    server.generate(
        text=["a", "b"],
        sampling_params=[
            {"max_new_tokens": 1, "json_schema": SCHEMA},
            {"max_new_tokens": 1, "regex": "a+", "ignore_eos": True},
        ],
    )
    first, second = (request.sampling for request in server.engine.requests[-2:])
    assert first.grammar == AS_SCHEMA
    assert second.grammar == Grammar("regex", "a+")
    assert second.stop_token_ids, "the end of the grammar must end the answer"
    answer = server.post(
        "/generate", text=["a", "b"], sampling_params=[{}, {"json_schema": {"not": {}}}]
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "sampling_params[1].json_schema"
    assert "sampling_params[1].json_schema#/not: the keyword not" in error["message"]
    assert error["code"] == "unsupported_parameter"


def test_engines_are_told_the_vocabulary_once(server: Running) -> None:
    (vocabulary,) = server.engine.vocabularies
    assert len(vocabulary.pieces) == 512
    assert vocabulary.eos_ids
    assert vocabulary.tokenizer_json.startswith("{")


def test_grammars_can_be_turned_off(model: Path) -> None:
    with Running(model, grammar_backend="none") as running:
        answer = running.post("/generate", text="a", sampling_params={"regex": "a"})
        assert answer.status_code == 400
        assert "--grammar-backend none" in answer.json()["error"]["message"]
        assert not running.engine.vocabularies
    with Running(model, skip_tokenizer_init=True) as running:
        answer = running.post("/generate", input_ids=[5], sampling_params={"regex": "a"})
        assert answer.status_code == 400


def test_a_whitespace_pattern_that_cannot_be_used_stops_the_start(model: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"whitespace-pattern is '\(': unclosed"),
        Running(model, constrained_json_whitespace_pattern="("),
    ):
        raise AssertionError("it has started")


def test_a_hopeless_grammar_times_out_and_the_next_one_works(model: Path) -> None:
    endless = {"allOf": [{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(30)]}
    with Running(model, grammar_timeout=1.5) as running:
        # The process that compiles must have started before the clock matters.
        assert running.generate(text="a", sampling_params={"regex": "a", "max_new_tokens": 1})
        answer = running.post("/generate", text="a", sampling_params={"json_schema": endless})
        assert answer.status_code == 400
        assert "was not compiled in 1.5 s" in answer.json()["error"]["message"]
        assert len(running.engine.requests) > 0
        assert running.generate(text="a", sampling_params={"regex": "b", "max_new_tokens": 1})
