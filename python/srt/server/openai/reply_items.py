"""A reply as items that open, grow and close: thoughts, text, calls. Event streams tell it so."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from srt.server.generation import Sequence
from srt.server.openai.reply import ReplyReader
from srt.text.tools.calls import Piece

ItemKind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Item:
    """One of the things that a reply is made of.

    name, call_id: of a call. parts: its text, or its arguments.
    """

    index: int
    kind: ItemKind
    id: str
    name: str = ""
    call_id: str = ""
    is_open: bool = True
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.parts)


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to an item: it opens, it grows by `text`, or it closes."""

    what: Literal["open", "grow", "close"]
    item: Item
    text: str = ""


class ReplyItems:
    """Makes one choice's items out of what is read of it.

    new_call_id: a name for a call, as the model's template takes it. prefixes: of the items' ids.
    fills: a reply of nothing is one empty text.
    """

    def __init__(
        self,
        reader: ReplyReader,
        new_call_id: Callable[[], str],
        prefixes: Mapping[ItemKind, str],
        *,
        fills: bool,
    ) -> None:
        self._reader = reader
        self._new_call_id = new_call_id
        self._prefixes = prefixes
        self._fills = fills
        self.items: list[Item] = []
        self.num_reasoning_tokens = reader.num_reasoning_tokens

    @property
    def has_calls(self) -> bool:
        """Whether the reply calls a function."""
        return any(item.kind == "call" for item in self.items)

    def take(self, sequence: Sequence) -> list[Change]:
        """What is new; with the end of the sequence the last item closes."""
        changes = [change for piece in self._reader.take(sequence) for change in self._add(piece)]
        if sequence.finish:
            if self._fills and not self.items:
                changes += self._open("text")
            changes += self._close()
        return changes

    def _add(self, piece: Piece) -> Iterator[Change]:
        if piece.kind == "call":
            yield from self._open("call", piece.text)
            return
        kind: ItemKind = "call" if piece.kind == "arguments" else piece.kind
        if kind != "call" and not (self._is_open() and self.items[-1].kind == kind):
            yield from self._open(kind)
        item = self.items[-1]
        item.parts.append(piece.text)
        yield Change("grow", item, piece.text)

    def _open(self, kind: ItemKind, name: str = "") -> Iterator[Change]:
        yield from self._close()
        call_id = self._new_call_id() if kind == "call" else ""
        item_id = self._prefixes[kind] + secrets.token_hex(24)
        item = Item(len(self.items), kind, item_id, name, call_id)
        self.items.append(item)
        yield Change("open", item)

    def _close(self) -> Iterator[Change]:
        if self._is_open():
            self.items[-1].is_open = False
            yield Change("close", self.items[-1])

    def _is_open(self) -> bool:
        return bool(self.items) and self.items[-1].is_open
