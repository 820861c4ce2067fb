"""The check of grammars: what is wrong with one is told with its place, whatever it does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from functools import reduce
from typing import Any

import pytest

from byte_vocabulary import byte_vocabulary
from srt.errors import InvalidParameter, QueueFull, RequestError, UnsupportedParameter
from srt.grammar_compiler import check_whitespace
from srt.text.grammar import choice_grammar, ebnf_grammar, regex_grammar, schema_grammar
from srt.text.grammar_checker import MAX_PENDING, GrammarChecker, refuse
from srt.text.grammar_worker import Verdict
from srt.types import Grammar

UNIQUE = {"type": "array", "uniqueItems": True}


@pytest.fixture(scope="module")
def checker() -> Iterator[GrammarChecker]:
    made = GrammarChecker(byte_vocabulary(300), 300, None, timeout_s=20.0)
    yield made
    made.close()


def check(checker: GrammarChecker, grammar: Grammar) -> None:
    verdict = checker.judge(grammar)
    refuse(verdict.result(60.0) if isinstance(verdict, Future) else verdict, "it")


def complaint(checker: GrammarChecker, grammar: Grammar) -> str | None:
    try:
        check(checker, grammar)
    except RequestError as error:
        return error.message if error.param == "it" else f"{error.param} instead of it"
    return None


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        (UNIQUE, "#/uniqueItems: the keyword uniqueItems is not supported"),
        ({"properties": {"a/b": {"items": UNIQUE}}}, "#/properties/a~1b/items/uniqueItems"),
        ({"$defs": {"t~": UNIQUE}, "$ref": "#/$defs/t~0"}, "#/$defs/t~0/uniqueItems"),
        ({"anyOf": [{"type": "null"}, {"not": {}}]}, "#/anyOf/1/not"),
        ({"prefixItems": [{}, {"contains": {}}], "type": "array"}, "#/prefixItems/1/contains"),
        ({"allOf": [{"if": {}, "then": {}}]}, "#/allOf/0/if"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf: oneOf is not supported"),
        ({"items": {"type": "string", "pattern": "(?=a)b"}}, "#/items/pattern: look-around"),
        ({"items": {"type": "string", "format": "wat"}}, "#/items/format: Unknown format"),
        ({"properties": {"a": {"type": "strin"}}}, "#/properties/a/type: Invalid type: strin"),
        ({"properties": {"a": {"$ref": "#/$defs/no"}}}, "#/properties/a/$ref: Pointer"),
        ({"$ref": "http://127.0.0.1:1/x"}, "#/$ref: Resource"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "#/minimum: Unsatisfiable"),
    ],
)
def test_what_is_wrong_in_a_schema_has_a_pointer(
    checker: GrammarChecker, schema: Any, pointer: str
) -> None:
    said = complaint(checker, schema_grammar(schema, "it"))
    assert said is not None
    assert said.startswith(f"it{pointer}")


@pytest.mark.parametrize(
    "grammar",
    [
        regex_grammar(r"\d{3}-[a-z]+", "it"),
        ebnf_grammar('root ::= expr\nexpr ::= term ("+" term)*\nterm ::= [0-9]+ | "x"', "it"),
        ebnf_grammar('start: "a" /b+/ obj\nobj: %json {"type": "integer"}', "it"),
        choice_grammar(['say "no"', "back\\slash", "new\nline", "ü🎉"], "it"),
        schema_grammar({}, "it"),
        schema_grammar({"oneOf": [{"type": "string"}, {"type": "null"}]}, "it"),
        schema_grammar(reduce(lambda inner, _: {"items": inner}, range(60), {}), "it"),
    ],
    ids=str,
)
def test_what_can_be_used(checker: GrammarChecker, grammar: Grammar) -> None:
    assert complaint(checker, grammar) is None
    assert checker.judge(grammar) == Verdict(), "it is remembered"


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (regex_grammar("a(", "it"), "it: unclosed group"),
        (regex_grammar("(a{1000}){1000}", "it"), "it: "),
        (ebnf_grammar("root ::= x", "it"), "it: Rule 'x' not found"),
        (ebnf_grammar("hello", "it"), "it: Expected ::="),
        (ebnf_grammar("start: x", "it"), 'it: unknown name: "x"'),
        (ebnf_grammar("root ::= " + "(" * 20_000, "it"), "it: rules are nested too deeply"),
        (ebnf_grammar("start: " + "(" * 20_000 + '"a"' + ")" * 20_000, "it"), "it: "),
    ],
    ids=["open", "huge", "unknown rule", "no grammar", "unknown name", "deep", "deep lark"],
)
def test_what_is_wrong_elsewhere(checker: GrammarChecker, grammar: Grammar, said: str) -> None:
    found = complaint(checker, grammar)
    assert found is not None
    assert found.startswith(said)
    assert "\n" not in found
    assert len(found) < 500


def test_kinds_of_refusal(checker: GrammarChecker) -> None:
    for _ in range(2):  # compiled, then remembered
        with pytest.raises(UnsupportedParameter):
            check(checker, schema_grammar(UNIQUE, "it"))
        with pytest.raises(InvalidParameter):
            check(checker, regex_grammar("a(", "it"))


def test_what_overflows_the_compiler_costs_one_process(checker: GrammarChecker) -> None:
    chain = "".join(f'r{i}: "a" r{i + 1}\n' for i in range(3000))
    said = complaint(checker, ebnf_grammar(f'start: r0\n{chain}r3000: "b"\n', "it"))
    assert said == "it: compiling it takes more memory or nesting than is allowed"
    assert complaint(checker, regex_grammar("after+", "it")) is None


def test_whitespace_patterns() -> None:
    assert check_whitespace(r"[ \n]{0,3}") is None
    assert check_whitespace("(") == "unclosed group"


def test_many_who_ask_the_same_wait_for_one_compilation(checker: GrammarChecker) -> None:
    grammar = schema_grammar({"type": "integer", "maximum": 12345}, "it")
    asked = [checker.judge(grammar) for _ in range(3 * MAX_PENDING)]
    assert len({id(one) for one in asked if isinstance(one, Future)}) <= 1
    check(checker, grammar)
    others = [regex_grammar(f"a{{{i}}}", "it") for i in range(1, 5 * MAX_PENDING)]
    with pytest.raises(QueueFull):
        assert [checker.judge(other) for other in others]
    check(checker, grammar)
