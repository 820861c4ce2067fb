"""What the grammars of tool calls let a model write, over the SmolLM2 vocabulary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from llguidance import LLTokenizer

from srt.grammar_compiler import DEFAULT_WHITESPACE, compile_grammar, open_tokenizer
from srt.text.grammar_checker import vocabulary_of
from srt.text.reasoning import REASONING_FORMATS
from srt.text.reply import ReplyParser
from srt.text.tokenizer import Tokenizer, load_tokenizer
from srt.text.tools.calls import Function
from srt.text.tools.formats import TOOL_FORMATS
from srt.text.tools.grammar import (
    MAX_FORCED_CALLS,
    BoundFunction,
    Writing,
    after_thoughts,
    forced_calls,
    free_calls,
)
from srt.types import Grammar

SCHEMA = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"city": {"type": "string", "enum": ["Rome", 'a"b']}},
}
FUNCTIONS = [BoundFunction("get_weather", SCHEMA), BoundFunction("now.utc", None)]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return load_tokenizer(smollm2)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> LLTokenizer:
    return open_tokenizer(vocabulary_of(tokenizer, tokenizer.eos_ids), len(tokenizer.pieces))


@pytest.fixture
def writing(tokenizer: Tokenizer) -> Writing:
    return Writing(tokenizer, DEFAULT_WHITESPACE, is_parallel=True)


def allows(compiler: LLTokenizer, tokenizer: Tokenizer, grammar: Grammar, text: str) -> bool:
    matcher = compile_grammar(compiler, grammar, None).deep_copy()
    ids = tokenizer.encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def hermes(name: str, args: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {args}}}\n</tool_call>'


def llama(name: str, args: str) -> str:
    return f'{{"name": "{name}", "parameters": {args}}}'


ROME = '{"city": "Rome", "days": 3}'
# format, an answer with two calls, answers that are not allowed
FORCED_CASES = [
    (
        "hermes",
        hermes("get_weather", ROME) + "\n" + hermes("now.utc", "{}"),
        ["", "Hi", hermes("get_weather", "{}"), hermes("other", "{}"), hermes("now.utc", "[]")],
    ),
    (
        "llama3",
        llama("get_weather", ROME) + "; " + llama("now.utc", '{"a": [1]}'),
        ["", "Hi", llama("get_weather", '{"city": "Oslo"}'), llama("other", "{}")],
    ),
    (
        "mistral",
        "[" + llama("get_weather", '{"city": "a\\"b"}') + ", " + llama("now.utc", "{}") + "]",
        ["[]", llama("now.utc", "{}")],
    ),
]


@pytest.mark.parametrize(("name", "two", "others"), FORCED_CASES)
def test_forced_calls(
    compiler: LLTokenizer,
    tokenizer: Tokenizer,
    writing: Writing,
    name: str,
    two: str,
    others: list[str],
) -> None:
    grammar, format_ = forced_calls(TOOL_FORMATS[name], FUNCTIONS, writing)
    assert allows(compiler, tokenizer, grammar, two)
    assert not any(allows(compiler, tokenizer, grammar, other) for other in others)
    alone, _ = forced_calls(TOOL_FORMATS[name], FUNCTIONS, replace(writing, is_parallel=False))
    assert not allows(compiler, tokenizer, alone, two)
    declared = [Function("get_weather", SCHEMA), Function("now.utc", {})]
    parser = ReplyParser(tools=format_, functions=declared)
    pieces = parser.push(two) + parser.finish()
    assert [piece.text for piece in pieces if piece.kind == "call"] == ["get_weather", "now.utc"]
    assert not [piece for piece in pieces if piece.kind == "text"]
    assert format_.id_length == TOOL_FORMATS[name].id_length


def test_forced_calls_end(compiler: LLTokenizer, tokenizer: Tokenizer, writing: Writing) -> None:
    grammar, _ = forced_calls(TOOL_FORMATS["hermes"], FUNCTIONS, writing)
    calls = [hermes("now.utc", "{}")] * (MAX_FORCED_CALLS + 1)
    assert allows(compiler, tokenizer, grammar, "\n".join(calls[1:]))
    assert not allows(compiler, tokenizer, grammar, "\n".join(calls))


@pytest.mark.parametrize(
    ("name", "allowed", "others"),
    [
        (
            "hermes",
            ["", "Hi <b> {", hermes("now.utc", "{}"), f"Ok.\n{hermes('get_weather', ROME)} done"],
            [f"Ok. {hermes('get_weather', '{}')}", "a <tool_call> b", hermes("other", "{}")],
        ),
        (
            "llama3",
            ["", "Hi {", llama("now.utc", "{}")],
            ['{"a": 1}', llama("get_weather", "{}")],
        ),
    ],
)
def test_free_calls(
    compiler: LLTokenizer,
    tokenizer: Tokenizer,
    writing: Writing,
    name: str,
    allowed: list[str],
    others: list[str],
) -> None:
    grammar = free_calls(TOOL_FORMATS[name], FUNCTIONS, writing)
    assert grammar is not None
    assert all(allows(compiler, tokenizer, grammar, text) for text in allowed)
    assert not any(allows(compiler, tokenizer, grammar, text) for text in others)


def test_formats_that_cannot_be_held_to_a_schema_say_so(writing: Writing) -> None:
    for name in sorted(set(TOOL_FORMATS) - {"hermes", "llama3"}):
        assert free_calls(TOOL_FORMATS[name], FUNCTIONS, writing) is None


@pytest.mark.parametrize("opens", [False, True])
def test_thoughts_come_first(
    compiler: LLTokenizer, tokenizer: Tokenizer, writing: Writing, opens: bool
) -> None:
    call = hermes("now.utc", "{}")
    thinking = replace(writing, reasoning=REASONING_FORMATS["qwen3"], opens=opens)
    grammar, _ = forced_calls(TOOL_FORMATS["hermes"], FUNCTIONS, thinking)
    begin = "" if opens else "<think>\n"
    assert allows(compiler, tokenizer, grammar, f"{begin}Maybe {call}?\n</think>\n\n{call}")
    assert allows(compiler, tokenizer, grammar, call) is not opens
    assert not allows(compiler, tokenizer, grammar, f"{begin}Hm.\n</think>\n\nNo call.")


@pytest.mark.parametrize(
    ("grammar", "answer", "other"),
    [
        (Grammar("json_schema", '{"type": "integer"}'), "12", "a"),
        (Grammar("regex", r"a/b\/c\\\n/?"), "a/b/c\\\n/", "a/b"),
    ],
)
def test_a_bound_answer_comes_after_the_thoughts(
    compiler: LLTokenizer,
    tokenizer: Tokenizer,
    writing: Writing,
    grammar: Grammar,
    answer: str,
    other: str,
) -> None:
    thinking = replace(writing, reasoning=REASONING_FORMATS["qwen3"], opens=True)
    bound = after_thoughts(grammar, thinking)
    assert allows(compiler, tokenizer, bound, f"Hm {other}.\n</think>\n\n{answer}")
    assert not allows(compiler, tokenizer, bound, f"Hm.\n</think>{other}")
    assert not allows(compiler, tokenizer, bound, answer)
    assert allows(compiler, tokenizer, grammar, answer)


def test_marks_that_are_special_tokens(smollm2: Path, compiler: LLTokenizer) -> None:
    tokenizer = load_tokenizer(smollm2)
    writing = Writing(tokenizer, DEFAULT_WHITESPACE, is_parallel=True)
    mark = tokenizer.token_text(min(tokenizer.special - {tokenizer.bos_id, *tokenizer.eos_ids}))
    assert writing.mark(mark).startswith("<[")
    assert writing.mark("<tool_call>") == '"<tool_call>"'
    grammar = Grammar("ebnf", f'start: begin "x"\n{writing.ends_lazily("begin", mark)}\nTEXT: /.*/')
    assert allows(compiler, tokenizer, grammar, f"some text{mark}x")
    assert not allows(compiler, tokenizer, grammar, "some textx")
