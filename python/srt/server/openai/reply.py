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


class ReplyTeller:
    """One choice: its text goes in, deltas and in the end a message come out.

    Both come from the same pieces, so a stream joins to the whole answer.
    """

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
        self._content: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[dict[str, Any]] = []

    @property
    def has_calls(self) -> bool:
        """Whether the answer calls a function."""
        return bool(self._calls)

    def take(self, sequence: Sequence) -> list[Delta]:
        """What is new of the choice, as deltas."""
        pieces = self._parser.push(sequence.take_text())
        if sequence.finish and not self._has_finished:
            self._has_finished = True
            pieces += self._parser.finish()
        deltas: list[Delta] = []
        for piece in pieces:
            delta = self._take_piece(piece)
            if delta is not None:
                deltas.append(delta)
        return deltas

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

    def _take_piece(self, piece: Piece) -> Delta | None:
        if piece.kind == "text":
            if self._tools is not None and self._tools.forced:
                return None  # a call that was cut before it could be told
            self._content.append(piece.text)
            return {"content": piece.text}
        if piece.kind == "reasoning":
            self._thoughts.append(piece.text)
            return {"reasoning_content": piece.text}
        assert self._tools is not None
        if piece.index > 0 and not self._tools.is_parallel:
            return None
        if piece.kind == "call":
            function = {"name": piece.text, "arguments": ""}
            call = {"id": self._tools.format.new_id(), "type": "function", "function": function}
            self._calls.append(call)
            return {"tool_calls": [{"index": piece.index, **_copy(call)}]}
        self._calls[piece.index]["function"]["arguments"] += piece.text
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}


def _copy(call: dict[str, Any]) -> dict[str, Any]:
    return {**call, "function": {**call["function"]}}
