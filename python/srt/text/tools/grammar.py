"""Grammars of replies with tool calls or thoughts: what a model may write, and where.

Rules are llguidance's Lark. Each function's arguments are bound by its own schema, whose references
stay within it. Hermes and Llama 3 calls are written as the model knows them; for every other format
a forced call is a JSON list, which `FORCED` reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from srt.text.reasoning import ReasoningFormat
from srt.text.tokenizer import Tokenizer
from srt.text.tools.calls import ToolFormat
from srt.text.tools.formats import FORCED, TOOL_CALL
from srt.types import Grammar

_ANY_TEXT = r"TEXT: /(.|\n)*/"
_SPACE = r"SPACE: /\s*/"
# A model that must call may be unable to stop calling: small ones repeat one call for ever.
MAX_FORCED_CALLS = 16
_MORE = f"{{0,{MAX_FORCED_CALLS - 1}}}"


@dataclass(frozen=True, slots=True)
class BoundFunction:
    """A function and what its arguments must match. schema: None: any object."""

    name: str
    schema: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Writing:
    """How an answer is written.

    whitespace: regex of what may stand between the tokens of JSON. reasoning: set where thoughts
    may or, if `opens`, must come first.
    """

    tokenizer: Tokenizer
    whitespace: str
    is_parallel: bool
    reasoning: ReasoningFormat | None = None
    opens: bool = False

    def mark(self, text: str) -> str:
        """A mark as a terminal: its token where that is special, else its text."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1 and ids[0] in self.tokenizer.special:
            return f"<[{ids[0]}]>"
        return quote(text)

    def ends_lazily(self, name: str, mark: str) -> str:
        """A rule: any text, up to the first `mark`."""
        terminal = self.mark(mark)
        lazy = "" if terminal.startswith("<[") else "[lazy]"
        return f"{name}{lazy}: TEXT {terminal}"


def quote(text: str) -> str:
    """A text as a terminal."""
    return json.dumps(text, ensure_ascii=False)


def forced_calls(
    format_: ToolFormat, functions: Sequence[BoundFunction], writing: Writing
) -> tuple[Grammar, ToolFormat]:
    """An answer that is one call or, if parallel, a few; and the format that reads it."""
    if format_.name == "hermes":
        begin, end = writing.mark(TOOL_CALL), writing.mark("</tool_call>")
        rules = _call_rules(functions, writing, "arguments", ("\n", "\n"))
        rules.append(f"one: {begin} call {end}")
        body = f'one ("\\n" one){_MORE}' if writing.is_parallel else "one"
        return _grammar(body, rules, writing), format_
    if format_.name == "llama3":
        rules = _call_rules(functions, writing, "parameters", ("", ""))
        body = f'call ("; " call){_MORE}' if writing.is_parallel else "call"
        return _grammar(body, rules, writing), format_
    rules = _call_rules(functions, writing, "parameters", ("", ""))
    body = f'"[" call (", " call){_MORE} "]"' if writing.is_parallel else '"[" call "]"'
    return _grammar(body, rules, writing), replace(FORCED, id_length=format_.id_length)


def free_calls(
    format_: ToolFormat, functions: Sequence[BoundFunction], writing: Writing
) -> Grammar | None:
    """Any answer whose calls, if it has any, match; None: not possible in this format."""
    if format_.name == "hermes":
        rules = _call_rules(functions, writing, "arguments", ("\n", "\n"))
        rules.append(writing.ends_lazily("begin", TOOL_CALL))
        rules.append(f"one: begin call {writing.mark('</tool_call>')}")
        many = "one*" if writing.is_parallel else "one?"
        return _grammar(f"{many} rest", [*rules, "rest: TEXT"], writing)
    if format_.name == "llama3":
        rules = _call_rules(functions, writing, "parameters", ("", ""))
        many = 'call ("; " call)*' if writing.is_parallel else "call"
        return _grammar("calls | plain?", [*rules, f"calls: {many}", _PLAIN], writing)
    return None


def after_thoughts(grammar: Grammar, writing: Writing) -> Grammar:
    """`grammar` for what follows the thoughts; EBNF describes the whole answer as it is."""
    if grammar.kind == "json_schema":
        schema = json.loads(grammar.source)
        schema["x-guidance"] = {"whitespace_pattern": writing.whitespace}
        return _grammar("body", [f"body: %json {json.dumps(schema)}"], writing)
    if grammar.kind == "regex":
        pattern = _ESCAPED.sub(_between_slashes, grammar.source)
        return _grammar("BODY", [f"BODY: /{pattern}/"], writing)
    return grammar


_ESCAPED = re.compile(r"\\.|[/\n\r]", re.DOTALL)


def _between_slashes(found: re.Match[str]) -> str:
    """A part of a regex as it may stand between slashes."""
    return {"/": r"\/", "\n": r"\n", "\r": r"\r"}.get(found[0], found[0])


_PLAIN = r"plain: /[^{\s](.|\n)*/"


def _call_rules(
    functions: Sequence[BoundFunction], writing: Writing, key: str, around: tuple[str, str]
) -> list[str]:
    """The rule `call`: one JSON object with a name and arguments."""
    rules = ["call: " + " | ".join(f"call_{i}" for i in range(len(functions)))]
    for i, function in enumerate(functions):
        begin = f'{around[0]}{{"name": {quote(function.name)}, "{key}": '
        schema = {"type": "object", **(function.schema or {})}
        schema["x-guidance"] = {"whitespace_pattern": writing.whitespace}
        rules.append(f"call_{i}: {quote(begin)} arguments_{i} {quote('}' + around[1])}")
        rules.append(f"arguments_{i}: %json {json.dumps(schema)}")
    return rules


def _grammar(body: str, rules: list[str], writing: Writing) -> Grammar:
    start = f"start: {body}"
    more = [_ANY_TEXT]
    if writing.reasoning is not None:
        more += [writing.ends_lazily("thoughts", writing.reasoning.end), _SPACE, f"answer: {body}"]
        begin = writing.mark(writing.reasoning.begin)
        opened = "thoughts SPACE" if writing.opens else f"({begin} thoughts SPACE)?"
        start = f"start: {opened} answer"
    return Grammar("ebnf", "\n".join([start, *more, *rules]) + "\n")
