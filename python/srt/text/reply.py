"""What a reply is made of: thoughts, text and tool calls, found as it arrives."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from srt.errors import ConfigError
from srt.text.reasoning import (
    REASONING_FORMATS,
    ReasoningFormat,
    ReasoningSplitter,
    detect_reasoning_format,
    find_reasoning_format,
)
from srt.text.tokenizer import Tokenizer
from srt.text.tools.calls import CallFinder, Function, Piece, ToolFormat
from srt.text.tools.formats import TOOL_FORMATS, detect_tool_format, find_tool_format


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """How the served model writes. tools, reasoning: None: it has no such thing."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None

    def shown_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Special tokens that mark calls and thoughts: the parsers must see them."""
        ids = (mark_id(tokenizer, mark) for mark in self._marks())
        return frozenset(i for i in ids if i is not None and i in tokenizer.special)

    def _marks(self) -> Iterable[str]:
        if self.reasoning is not None:
            yield from (self.reasoning.begin, self.reasoning.end)
        if self.tools is not None:
            yield from self.tools.begins
            yield from self.tools.others


def mark_id(tokenizer: Tokenizer, mark: str) -> int | None:
    """The one token that a mark is, if it is one."""
    ids = tokenizer.encode(mark, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and tokenizer.pieces[ids[0]] == mark.encode() else None


def choose_reply_format(tools: str, reasoning: str, template: str | None) -> ReplyFormat:
    """The formats that the flags name. `auto`: what the chat template shows. Raises ConfigError."""
    return ReplyFormat(
        _choose_tools(tools, template or ""), _choose_reasoning(reasoning, template or "")
    )


def _choose_tools(name: str, template: str) -> ToolFormat | None:
    if name == "none":
        return None
    if name == "auto":
        return detect_tool_format(template)
    found = find_tool_format(name)
    if found is None:
        raise ConfigError(
            f"--tool-call-parser is {name!r}; it must be auto, none, or one of "
            + ", ".join(TOOL_FORMATS)
        )
    return found


def _choose_reasoning(name: str, template: str) -> ReasoningFormat | None:
    if name == "none":
        return None
    if name == "auto":
        return detect_reasoning_format(template)
    found = find_reasoning_format(name)
    if found is None:
        raise ConfigError(
            f"--reasoning-parser is {name!r}; it must be auto, none, or one of "
            + ", ".join(REASONING_FORMATS)
        )
    return found


class ReplyParser:
    """Splits one reply into pieces, the same ones wherever the text breaks."""

    __slots__ = ("_calls", "_reasoning")

    def __init__(
        self,
        *,
        reasoning: ReasoningFormat | None = None,
        opens: bool = False,
        tools: ToolFormat | None = None,
        functions: Collection[Function] = (),
    ) -> None:
        self._reasoning = None if reasoning is None else ReasoningSplitter(reasoning, opens=opens)
        self._calls = None if tools is None else CallFinder(tools, functions)

    @property
    def num_reasoning_bytes(self) -> int:
        """UTF-8 bytes of the thoughts with their marks so far."""
        return 0 if self._reasoning is None else self._reasoning.num_bytes

    @property
    def num_closed_calls(self) -> int:
        """Calls with all their arguments so far."""
        return 0 if self._calls is None else self._calls.num_closed

    def push(self, text: str) -> list[Piece]:
        """What `text` makes certain."""
        if self._reasoning is None:
            return self._find_calls([Piece("text", text)] if text else [])
        return self._find_calls(self._reasoning.push(text))

    def finish(self) -> list[Piece]:
        """The rest."""
        pieces = [] if self._reasoning is None else self._reasoning.finish()
        pieces = self._find_calls(pieces)
        return pieces if self._calls is None else pieces + self._calls.finish()

    def _find_calls(self, pieces: list[Piece]) -> list[Piece]:
        if self._calls is None:
            return pieces
        found: list[Piece] = []
        for piece in pieces:
            if piece.kind == "text":
                found += self._calls.push(piece.text)
            else:
                found.append(piece)
        return found


def join(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces with neighbours of one kind made one."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        is_more = last is not None and last.kind == piece.kind and last.index == piece.index
        if last is not None and is_more and piece.kind != "call":
            joined[-1] = Piece(piece.kind, last.text + piece.text, piece.index)
        else:
            joined.append(piece)
    return joined
