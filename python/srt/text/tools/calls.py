"""Tool calls in a reply: what is told of them, and the loop that finds them in the text.

What is no well-formed call of a declared function is text, whole and in its place. Once arguments
have begun they are told as the model writes them, even if they turn out not to be valid JSON.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from srt.text.source import Malformed, Markers, Reading, Source, Steps

_ID_LETTERS = string.ascii_letters + string.digits
Kind = Literal["reasoning", "text", "call", "arguments"]


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of a reply.

    kind: reasoning and text are what they say; call begins call `index`, text is its name;
    arguments are more of the arguments of call `index`.
    """

    kind: Kind
    text: str
    index: int = -1


@dataclass(frozen=True, slots=True)
class Function:
    """A function that may be called. parameters: its JSON Schema."""

    name: str
    parameters: Mapping[str, Any]

    def type_of(self, key: str) -> str | None:
        """The JSON type of one parameter, if its schema says it."""
        properties = self.parameters.get("properties")
        schema = properties.get(key) if isinstance(properties, Mapping) else None
        kind = schema.get("type") if isinstance(schema, Mapping) else None
        return kind if isinstance(kind, str) else None


class Calls:
    """Collects the pieces of a reply. Readers of call formats write to it."""

    __slots__ = ("_pieces", "_space", "functions", "has_begun", "num_calls", "num_closed")

    def __init__(self, functions: Collection[Function]) -> None:
        self.functions = {function.name: function for function in functions}
        self.num_calls = 0
        self.num_closed = 0  # of them have all their arguments
        self.has_begun = False  # a call of the current attempt
        self._pieces: list[Piece] = []
        self._space = ""  # white space that goes if a call follows

    def text(self, text: str) -> None:
        """Text beside the calls."""
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._add("text", shown, -1)

    def check(self, name: str) -> Function:
        """The function of that name. Raises Malformed if there is none."""
        function = self.functions.get(name)
        if function is None:
            raise Malformed
        return function

    def begin(self, name: str) -> None:
        """A call begins; there is no way back to text. Raises Malformed if nobody declared it."""
        self.check(name)
        self.has_begun = True
        self._space = ""
        self._pieces.append(Piece("call", name, self.num_calls))
        self.num_calls += 1

    def arguments(self, text: str) -> None:
        """More arguments of the call that began last."""
        self._add("arguments", text, self.num_calls - 1)

    def close(self) -> None:
        """The call that began last has all its arguments."""
        self.num_closed = self.num_calls

    def finish(self) -> None:
        """The reply has ended."""
        if self._space and self.num_calls == 0:
            self._add("text", self._space, -1)
        self._space = ""

    def take(self) -> list[Piece]:
        """The pieces since the last time."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def _add(self, kind: Kind, text: str, index: int) -> None:
        if self._pieces and self._pieces[-1].kind == kind and self._pieces[-1].index == index:
            text = self._pieces[-1].text + text
            self._pieces.pop()
        self._pieces.append(Piece(kind, text, index))


# marker that began it -> reads one call or a group of them. Raises Malformed.
ReadCalls = Callable[[Source, Calls, str], Steps[None]]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one family of models writes calls.

    begins: what a call begins with. others: more marks that may be special tokens. is_bare: a call
    may also open the reply without any mark. id_length: letters of a call's id; 0: OpenAI's form.
    """

    name: str
    begins: tuple[str, ...]
    read: ReadCalls
    others: tuple[str, ...] = ()
    is_bare: bool = False
    id_length: int = 0

    def new_id(self) -> str:
        """A name for a call, in the form that the model's template accepts."""
        if self.id_length == 0:
            return f"call_{secrets.token_hex(12)}"
        return "".join(secrets.choice(_ID_LETTERS) for _ in range(self.id_length))


class CallFinder:
    """Splits a reply into text and calls, in whatever pieces it arrives."""

    __slots__ = ("_calls", "_format", "_markers", "_reading")

    def __init__(self, format_: ToolFormat, functions: Collection[Function]) -> None:
        self._format = format_
        self._markers = Markers(*format_.begins)
        self._calls = Calls(functions)
        source = Source()
        self._reading = Reading(source, self._read(source))

    @property
    def num_closed(self) -> int:
        """Calls with all their arguments so far."""
        return self._calls.num_closed

    def push(self, text: str) -> list[Piece]:
        """What `text` makes certain."""
        self._reading.feed(text)
        return self._calls.take()

    def finish(self) -> list[Piece]:
        """The rest."""
        self._reading.finish()
        self._calls.finish()
        return self._calls.take()

    def _read(self, source: Source) -> Steps[None]:
        if self._format.is_bare:
            yield from self._try(source, "")
        while marker := (yield from source.take_until(self._markers, self._calls.text)):
            source.at += len(marker)
            yield from self._try(source, marker)

    def _try(self, source: Source, marker: str) -> Steps[None]:
        """Read calls; if there is none, the marker is text and what follows is read again."""
        source.pin()
        self._calls.has_begun = False
        try:
            yield from self._format.read(source, self._calls, marker)
        except Malformed:
            source.rewind()
            if not self._calls.has_begun and marker:
                self._calls.text(marker)
        source.unpin()
