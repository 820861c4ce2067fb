"""The choices of a chat whose answers hold more than text: thoughts and tool calls."""

from __future__ import annotations

from typing import Any

from srt.server.generation import Sequence
from srt.server.openai.tools import ToolUse
from srt.text.detokenizer import TextOptions
from srt.text.reasoning import ReasoningFormat
from srt.text.reply import ReplyParser
from srt.text.tokenizer import Tokenizer
from srt.text.tools.calls import Piece

Delta = dict[str, Any]


class CallLimit:
    """Reads one choice as it comes and tells when its first call is whole: there the answer ends.

    Every format is read as it is written, so it needs no mark that ends a call.
    """

    def __init__(self, tools: ToolUse, reasoning: ReasoningFormat | None, *, opens: bool) -> None:
        self._parser = ReplyParser(
            reasoning=reasoning, opens=opens, tools=tools.format, functions=tools.functions
        )

    def __call__(self, text: str) -> bool:
        """Whether the answer ends with `text`, which is new."""
        self._parser.push(text)
        return self._parser.num_closed_calls > 0


class ReplyReader:
    """One choice: its text goes in, and what of it is told comes out in pieces."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        options: TextOptions,
        tools: ToolUse | None,
        reasoning: ReasoningFormat | None,
        *,
        opens: bool,
    ) -> None:
        self._pieces = tokenizer.pieces
        self._hidden = options.hidden_ids(tokenizer)
        self._tools = tools
        self._parser = ReplyParser(
            reasoning=reasoning,
            opens=opens,
            tools=None if tools is None else tools.format,
            functions=() if tools is None else tools.functions,
        )
        self._has_finished = False

    def take(self, sequence: Sequence) -> list[Piece]:
        """What is new of the choice."""
        pieces = self._parser.push(sequence.take_text())
        if sequence.finish and not self._has_finished:
            self._has_finished = True
            pieces += self._parser.finish()
        return [piece for piece in pieces if self._is_told(piece)]

    def num_reasoning_tokens(self, sequence: Sequence) -> int:
        """Tokens of the thoughts, their marks included."""
        num_bytes = self._parser.num_reasoning_bytes
        seen = 0
        for count, token in enumerate(sequence.tokens):
            if seen >= num_bytes:
                return count
            if token not in self._hidden:
                seen += len(self._pieces[token])
        return len(sequence.tokens)

    def _is_told(self, piece: Piece) -> bool:
        if self._tools is None:
            return True
        if piece.kind == "text":
            return not self._tools.forced  # a call that was cut before it could be told
        return piece.index <= 0 or self._tools.is_parallel


class ReplyTeller:
    """One choice of a chat completion: its text goes in, deltas and in the end a message come out.

    Both come from the same pieces, so a stream joins to the whole answer.
    """

    def __init__(self, reader: ReplyReader, tools: ToolUse | None) -> None:
        self._reader = reader
        self._tools = tools
        self._content: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self.num_reasoning_tokens = reader.num_reasoning_tokens

    @property
    def has_calls(self) -> bool:
        """Whether the answer calls a function."""
        return bool(self._calls)

    def take(self, sequence: Sequence) -> list[Delta]:
        """What is new of the choice, as deltas."""
        return [self._take_piece(piece) for piece in self._reader.take(sequence)]

    def message(self, sequence: Sequence) -> dict[str, Any]:
        """The whole answer, when it has ended."""
        self.take(sequence)
        content = "".join(self._content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if self._calls and not content else content,
        }
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        if self._calls:
            message["tool_calls"] = [_copy(call) for call in self._calls]
        return message

    def _take_piece(self, piece: Piece) -> Delta:
        if piece.kind == "text":
            self._content.append(piece.text)
            return {"content": piece.text}
        if piece.kind == "reasoning":
            self._thoughts.append(piece.text)
            return {"reasoning_content": piece.text}
        assert self._tools is not None
        if piece.kind == "call":
            function = {"name": piece.text, "arguments": ""}
            call = {"id": self._tools.format.new_id(), "type": "function", "function": function}
            self._calls.append(call)
            return {"tool_calls": [{"index": piece.index, **_copy(call)}]}
        self._calls[piece.index]["function"]["arguments"] += piece.text
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}


def _copy(call: dict[str, Any]) -> dict[str, Any]:
    return {**call, "function": {**call["function"]}}
