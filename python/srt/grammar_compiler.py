"""Grammars compiled against a vocabulary by llguidance: what the check beside the server and the
engine share, so that what passed the one runs in the other. Loads no torch."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import tokenizers
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from srt.channel import Vocabulary
from srt.types import Grammar

# What stands between the tokens of a JSON document unless the server is told otherwise: enough for
# indentation, and finite, so that no answer is whitespace until its tokens run out.
DEFAULT_WHITESPACE = r"[ \t]{0,2}|\r?\n[ \t]{0,40}"
# A state of the lexer takes 1 to 2 KB; fuel and items bound the time of a mask.
LIMITS = LLParserLimits(
    max_items_in_row=4_000,
    initial_lexer_fuel=300_000,
    step_lexer_fuel=50_000,
    step_max_items=30_000,
    max_lexer_states=30_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
MAX_MESSAGE_CHARS = 400
REMEMBERED_TEXTS = 4096  # forced texts whose tokens are kept, of at most so many bytes:
LONGEST_REMEMBERED = 256
_SILENT = 0
_PLACE = re.compile(r"^(?:at )?\d+\(\d+\): ")
_CALLER = re.compile(r"^invalid regex \".*\" \(in regex\): ", re.DOTALL)


class GrammarError(Exception):
    """A grammar cannot be compiled or followed; the message is for the client."""


class _TokenizerSource:
    """A vocabulary as llguidance reads it."""

    is_tokenizer_wrapper = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.eos_ids[0]
        self.bos_token_id = None
        self.tokens = vocabulary.pieces
        self.special_token_ids = vocabulary.special_ids
        self._longest = max(map(len, vocabulary.pieces))
        hidden = set(vocabulary.special_ids)
        self._ids = {
            piece: i for i, piece in enumerate(vocabulary.pieces) if piece and i not in hidden
        }
        text = vocabulary.tokenizer_json
        self._fast = tokenizers.Tokenizer.from_str(text) if text else None
        # What a grammar forces is asked for again by every sequence that follows it.
        self._remembered = functools.lru_cache(REMEMBERED_TEXTS)(self._encode)

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens that a model writes `text` with, or, should they not spell it, the longest."""
        data = text if isinstance(text, bytes) else text.encode()
        if len(data) > LONGEST_REMEMBERED:
            return self._encode(data)
        return self._remembered(data).copy()

    def _encode(self, data: bytes) -> list[int]:
        if self._fast is not None:
            shown = data.decode("utf-8", "replace")
            ids: list[int] = self._fast.encode(shown, add_special_tokens=False).ids
            if b"".join([self.tokens[i] for i in ids]) == data:
                return ids
        return list(self._longest_tokens(data))

    def _longest_tokens(self, data: bytes) -> Iterator[int]:
        at = 0
        while at < len(data):
            ends = range(min(len(data), at + self._longest), at, -1)
            end = next((end for end in ends if data[at:end] in self._ids), at + 1)
            if data[at:end] in self._ids:
                yield self._ids[data[at:end]]
            at = end


def open_tokenizer(vocabulary: Vocabulary, vocab_size: int) -> LLTokenizer:
    """llguidance's tokenizer; masks have `vocab_size` bits."""
    source: Any = _TokenizerSource(vocabulary)
    return LLTokenizer(source, n_vocab=vocab_size, eos_token=list(vocabulary.eos_ids))


def compile_grammar(tokenizer: LLTokenizer, grammar: Grammar, whitespace: str | None) -> LLMatcher:
    """A matcher at the grammar's beginning; copy it for each sequence.

    Args:
        whitespace: regex of what may stand between the tokens of JSON; None: DEFAULT_WHITESPACE.

    Raises:
        GrammarError: the grammar is malformed, not supported or too large.
    """
    matcher = LLMatcher(
        tokenizer, _llguidance_text(grammar, whitespace), log_level=_SILENT, limits=LIMITS
    )
    if matcher.is_error():
        raise GrammarError(readable(matcher.get_error()))
    return matcher


def check_whitespace(pattern: str) -> str | None:
    """Why a whitespace pattern cannot be used, or None."""
    text = LLMatcher.grammar_from_json_schema({}, overrides={"whitespace_pattern": pattern})
    return readable(LLMatcher.validate_grammar(text, limits=LIMITS)) or None


def readable(message: str) -> str:
    """llguidance's words on one line, without its own coordinates."""
    text = message.split("\n<", 1)[0]
    text = _CALLER.sub("", _PLACE.sub("", text))
    if text.startswith("oneOf constraints"):
        return "oneOf is not supported unless its branches can be told apart; anyOf is"
    if "regex parse error" in text and "error: " in text:
        text = text.rsplit("error: ", 1)[1].split("\n", 1)[0]
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE_CHARS else text[:MAX_MESSAGE_CHARS] + " …"


def _llguidance_text(grammar: Grammar, whitespace: str | None) -> str:
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.source)
    if grammar.kind == "json_schema":
        options: Any = {"whitespace_pattern": whitespace or DEFAULT_WHITESPACE}
        try:
            return LLMatcher.grammar_from_json_schema(grammar.source, overrides=options)
        except ValueError as error:
            raise GrammarError(readable(str(error))) from error
    return _lark_text(grammar.source)


def _lark_text(source: str) -> str:
    try:
        lark = any_to_lark(source)
    except GbnfToLarkError as error:
        raise GrammarError(readable(str(error))) from error
    except RecursionError as error:
        raise GrammarError("rules are nested too deeply") from error
    except Exception as error:
        raise GrammarError(readable(str(error)) or "it cannot be read") from error
    return LLMatcher.grammar_from_lark(lark)
